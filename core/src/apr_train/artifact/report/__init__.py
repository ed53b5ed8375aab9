"""What a run was and did, for people: one page to open from the disk, or a picture of its curves. Torch-free."""
