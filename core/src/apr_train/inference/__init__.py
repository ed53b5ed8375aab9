"""What is done with a trained model: measure it, let it write, let it fill in masks. Nothing is imported here."""
