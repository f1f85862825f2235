"""Thalweg: a deep-learning framework that compiles a whole training step to one native program.

`import thalweg as tw` gives tensors, functions on them, gradients and `compile`; the parts above them
(`tw.nn`, `tw.optim`, `tw.data`, `tw.io`, `tw.train`, `tw.viz`, `tw.models`) are imported when they are first
used. """

from __future__ import annotations

import importlib
from typing import Any

from thalweg import errors, graph, ops, types
from thalweg import tensor as _tensor
from thalweg.ops import *  # noqa: F403 - the names are listed in thalweg.ops
from thalweg.tensor import *  # noqa: F403 - the names are listed in thalweg.tensor
from thalweg.types import (
    DType,
    bfloat16,
    bool_,
    dtype,
    float16,
    float32,
    float64,
    int8,
    int16,
    int32,
    int64,
    uint8,
    uint16,
    uint32,
    uint64,
)
from thalweg.version import __version__

graph.bind("draw", lambda drawn, path: importlib.import_module("thalweg.viz").draw(drawn, path))

_LATE = {"quantize": "nn.quantised"}  # functions of parts that are not imported yet
_PARTS = ("debug", "nn", "optim", "data", "io", "train", "viz", "models", "graph", "plan", "config")

__all__ = [
    *ops.__all__,
    *_tensor.__all__,
    "DType",
    "__version__",
    "bfloat16",
    "bool_",
    "dtype",
    "errors",
    "float16",
    "float32",
    "float64",
    "int8",
    "int16",
    "int32",
    "int64",
    "types",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    *_LATE,
    *_PARTS,
]


def __getattr__(name: str) -> Any:
    if name in _PARTS:
        return importlib.import_module(f"thalweg.{name}")
    if name in _LATE:
        return getattr(importlib.import_module(f"thalweg.{_LATE[name]}"), name)
    raise AttributeError(f"module 'thalweg' has no attribute {name!r}", name=name)


def __dir__() -> list[str]:
    return sorted(__all__)
