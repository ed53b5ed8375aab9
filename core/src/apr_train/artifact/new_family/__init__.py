"""A family's package written from a checkpoint: what is read, what it means for the card, the names, the files."""
