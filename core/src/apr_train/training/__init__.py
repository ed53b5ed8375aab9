"""The training run: settings, the loop, what it writes, and how it goes on after an interruption.

Importing this package does not import torch; the modules that compute do.
"""
