"""Seeded defects of families and of the core, and which check catches each: see `python -m tests.mutants --help`."""
