"""The `.apr` container, version 2: numpy and mmap, no torch."""

from apr_train.checkpoint.apr.layout import Flags
from apr_train.checkpoint.apr.reader import AprReader
from apr_train.checkpoint.apr.shards import ShardedReader, open_apr
from apr_train.checkpoint.apr.writer import AprWriter, TensorSpec, rewrite

__all__ = [
    "AprReader",
    "AprWriter",
    "Flags",
    "ShardedReader",
    "TensorSpec",
    "open_apr",
    "rewrite",
]
