"""A module that fails when it is looked at: attributes of modules can be code."""


def __getattr__(name):
    raise RuntimeError(f"cannot load {name}")
