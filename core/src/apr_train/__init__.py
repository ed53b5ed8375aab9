"""A trainer for language models that knows no architecture: families are plugins."""
