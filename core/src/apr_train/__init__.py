"""A trainer for language models that knows no architecture: families are plugins.

    import apr_train

    run = apr_train.train(arch="qwen2", init="x.apr", data="src", steps=200)
    print(run.metrics[-1].val_loss, run.model.generate("def fib(n):").text)

The functions are the commands of `apr-train`, by the same names and settings: docs/python.md. A name's module is imported when
the name is first asked for, and torch when something is computed.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from apr_train.api.checking import check, check_run
    from apr_train.api.conversion import Exported, convert, export
    from apr_train.api.evaluation import Evaluation, evaluate, evaluate_fim, evaluate_syntax
    from apr_train.api.models import LoadedModel, generate, load
    from apr_train.api.training import FinishedRun, train
    from apr_train.artifact.conversion import Converted
    from apr_train.errors import AprTrainError

__all__ = [
    "AprTrainError",
    "Converted",
    "Evaluation",
    "Exported",
    "FinishedRun",
    "LoadedModel",
    "check",
    "check_run",
    "convert",
    "evaluate",
    "evaluate_fim",
    "evaluate_syntax",
    "export",
    "generate",
    "load",
    "train",
]

_MODULES = {
    "AprTrainError": "errors",
    "Converted": "artifact.conversion",
    "Evaluation": "api.evaluation",
    "Exported": "api.conversion",
    "FinishedRun": "api.training",
    "LoadedModel": "api.models",
    "check": "api.checking",
    "check_run": "api.checking",
    "convert": "api.conversion",
    "evaluate": "api.evaluation",
    "evaluate_fim": "api.evaluation",
    "evaluate_syntax": "api.evaluation",
    "export": "api.conversion",
    "generate": "api.models",
    "load": "api.models",
    "train": "api.training",
}
"""Name → its module in this package."""


def __getattr__(name: str) -> Any:
    """Import the module of a name in `__all__` (PEP 562)."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
