"""Hostile and damaged files: the right answer or an error of ours, soon and in bounded memory. See `python -m tests.fuzz --help`."""
