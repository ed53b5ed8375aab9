"""The import fails."""

raise RuntimeError("no such luck")
