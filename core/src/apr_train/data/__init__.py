"""From text to batches: documents, their split, tokens, rows, and the objectives that cut them. Torch-free at import."""
