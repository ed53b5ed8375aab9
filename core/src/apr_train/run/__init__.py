"""What a run is told, and what its folder says."""
