"""What an architecture is, as data."""
