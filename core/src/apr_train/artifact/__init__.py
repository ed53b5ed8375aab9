"""The folder that one uploads: the `.apr`, what transformers loads, a card, and checksums. Torch-free."""
