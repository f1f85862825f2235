"""Control flow: `scan` (a loop that carries values and collects slices) and `cond`, with graphs as
attributes.

In come graph values and functions of them; `thalweg.tensor.control` offers the same for tensors. A graph
inside knows nothing of the graph outside: what its function uses from there becomes an input of it (a
*constant* of the scan, an *operand* of the cond).

The gradient of a scan is a scan in the opposite direction. The forward scan is then replaced by its residual
form, which also stacks those values of each iteration that the gradient cannot cheaply compute again.
Gradients of constants that are products summed over time (weights) are computed behind the loop, by one
product over all iterations.
"""

from thalweg.ops.control import examples
from thalweg.ops.control.branches import Cond
from thalweg.ops.control.checkpointing import Checkpoint, checkpoint
from thalweg.ops.control.closures import STATE, Traced, closed, fold_iteration
from thalweg.ops.control.functions import closed_branches, cond, scan, scan_length
from thalweg.ops.control.gradient import ScanGradient, scan_gradient
from thalweg.ops.control.graphs import (
    INDEX,
    applied,
    copied,
    copy_node,
    graph_operations,
    merge_iterations,
    split_iterations,
)
from thalweg.ops.control.loop import Scan

__all__ = [
    "INDEX",
    "STATE",
    "Checkpoint",
    "Cond",
    "Scan",
    "ScanGradient",
    "Traced",
    "applied",
    "checkpoint",
    "closed",
    "closed_branches",
    "cond",
    "copied",
    "copy_node",
    "examples",
    "fold_iteration",
    "graph_operations",
    "merge_iterations",
    "scan",
    "scan_gradient",
    "scan_length",
    "split_iterations",
]
