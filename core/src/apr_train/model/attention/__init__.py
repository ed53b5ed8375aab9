"""Attention backends behind one call, what each supports, and how one is chosen. Importing this needs no torch."""

from apr_train.model.attention.backend import AttentionBackend, PreparingBackend, Request
from apr_train.model.attention.choose import BACKEND_NAMES, Choice, choose_backend, load_backend
from apr_train.model.attention.masks import Bidirectional, Causal, Documents, Mask, MaskKind, PreparedMask, windowed

__all__ = [
    "BACKEND_NAMES",
    "AttentionBackend",
    "Bidirectional",
    "Causal",
    "Choice",
    "Documents",
    "Mask",
    "MaskKind",
    "PreparedMask",
    "PreparingBackend",
    "Request",
    "choose_backend",
    "load_backend",
    "windowed",
]
