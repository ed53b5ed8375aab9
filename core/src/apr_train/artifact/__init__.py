"""What one does with model files: convert, export, compare, stamp, publish, report. Torch-free."""
