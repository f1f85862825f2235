"""The user's tensors: values, traces, state, gradients, compiled functions. It glues graph, ops and programs together."""

from thalweg.tensor.compile import compile, spec
from thalweg.tensor.gradient import grad, gradient, no_grad, release, stop_gradient, value_and_grad, vjp
from thalweg.tensor.state import Buffer, Holder, Parameter, bump_epoch, epoch
from thalweg.tensor.tensor import Tensor, tensor
from thalweg.tensor.trace import tracing

__all__ = [
    "Buffer",
    "Holder",
    "Parameter",
    "Tensor",
    "bump_epoch",
    "compile",
    "epoch",
    "grad",
    "gradient",
    "no_grad",
    "release",
    "spec",
    "stop_gradient",
    "tensor",
    "tracing",
    "value_and_grad",
    "vjp",
]
