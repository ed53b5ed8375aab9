"""No FAMILY."""
