"""The trackers that are built in, each in a module of its own; `run/trackers.py` names them and says what package they need."""
