"""What `import apr_train` gives: the commands as functions that take and give values. They print nothing and exit nowhere.

Names are resolved lazily by `apr_train/__init__.py`; every error is an `AprTrainError`. docs/python.md is the page about it.
"""
