"""Hostile and damaged files: the right answer or an error of ours, soon, in bounded memory: `python -m tests.fuzz`."""
