"""Containers of weights behind one interface; nothing here imports torch but `torch_adapter`."""
