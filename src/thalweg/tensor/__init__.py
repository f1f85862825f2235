"""The user's tensors: values, traces, state, gradients, compiled functions. It glues graph, ops and programs
together.
"""

from thalweg.tensor import random
from thalweg.tensor.checkpointing import checkpoint
from thalweg.tensor.compile import compile, spec
from thalweg.tensor.control import cond, fori_loop, scan
from thalweg.tensor.dlpack import from_dlpack
from thalweg.tensor.gradient import grad, gradient, no_grad, release, value_and_grad, vjp
from thalweg.tensor.random import Generator, default_generator, manual_seed
from thalweg.tensor.state import Buffer, Holder, Parameter, bump_epoch, epoch
from thalweg.tensor.tensor import Tensor, asarray, tensor
from thalweg.tensor.trace import tracing

__all__ = [
    "Buffer",
    "Generator",
    "Holder",
    "Parameter",
    "Tensor",
    "asarray",
    "bump_epoch",
    "checkpoint",
    "compile",
    "cond",
    "default_generator",
    "epoch",
    "fori_loop",
    "from_dlpack",
    "grad",
    "gradient",
    "manual_seed",
    "no_grad",
    "random",
    "release",
    "scan",
    "spec",
    "tensor",
    "tracing",
    "value_and_grad",
    "vjp",
]
