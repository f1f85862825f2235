"""What the C backend has templates for, and which function writes which kernel."""

from __future__ import annotations

from collections.abc import Callable

from thalweg.codegen.c import (
    accumulation,
    attention,
    caches,
    cells,
    control,
    convolutions,
    iterations,
    lane_convolutions,
    lanes,
    matvec,
    nests,
    pooling,
    products,
    quantised,
    windows,
    winograd,
)
from thalweg.codegen.c.bindings import LANE_PARAMETERS, TILE_PARAMETERS, Context, KernelText
from thalweg.codegen.c.expressions import MOVES
from thalweg.errors import UnsupportedError
from thalweg.graph import REGISTRY, Kind, Node, Op
from thalweg.plan import Kernel, Support, Target

Emit = Callable[[Context], KernelText]

REDUCTIONS: dict[str, Emit] = dict.fromkeys(nests.COMBINE, nests.emit_reduction)
WINDOWS: dict[str, Emit] = dict.fromkeys(("max_pool", "sum_pool", "max_pool_gather"), windows.emit_window)


def emit_matmul(context: Context) -> KernelText:
    """A row-major matmul kernel."""
    few = matvec.shape_of(context.kernel)
    return products.emit_product(context) if few is None else matvec.emit(context, few)


BLOCK_EMITTERS: dict[str, Emit] = {  # one sample per lane
    "loops": nests.emit_loops,
    "pack": lanes.emit_pack,
    "unpack": lanes.emit_pack,
    "matmul": lanes.emit_matmul,
    "convolution": lane_convolutions.emit_convolution,
    "convolution_input_gradient": lane_convolutions.emit_convolution,
    "convolution_weight_gradient": lane_convolutions.emit_convolution_weight_gradient,
    "max_unpool": lanes.emit_unpool,
    "sum_unpool": lanes.emit_unpool,
    **REDUCTIONS,
    **WINDOWS,
}
TILE_EMITTERS: dict[str, Emit] = {  # row-major, cut into tiles of the output
    "loops": nests.emit_loops,
    "combine": nests.emit_loops,
    "copy": nests.emit_loops,
    "matmul": emit_matmul,
    "panels": products.emit_panels,
    "convolution": convolutions.emit_convolution,
    "convolution_input_gradient": convolutions.emit_convolution,
    "convolution_weight_gradient": convolutions.emit_convolution,
    "winograd_convolution": winograd.emit_winograd_convolution,
    "winograd_filters": winograd.emit_winograd_filters,
    "winograd_products": winograd.emit_winograd_products,
    "winograd_weight_gradient": winograd.emit_winograd_weight_gradient,
    "max_unpool": pooling.emit_max_unpool,
    "sum_unpool": windows.emit_unwindow,
    "scatter": accumulation.emit_scatter,
    "cumulative_sum": accumulation.emit_cumulative_sum,
    "dynamic_update_slice": caches.emit_update,
    "cached_attention": caches.emit_attention,
    "activation_bytes": quantised.emit_bytes,
    "byte_product": quantised.emit_product,
    "scan": control.emit_scan,
    "cond": control.emit_cond,
    **dict.fromkeys(attention.NAMES, attention.emit_attention),
    **dict.fromkeys(cells.CELLS, cells.emit_cell),
    **REDUCTIONS,
    **WINDOWS,
    "max_pool": pooling.emit_max_pool,
}


def workspace(kernel: Kernel, block: int, target: Target) -> int:
    """Bytes of scratch that a kernel needs beside its operands."""
    if kernel.kind == "scan":
        return control.scan_workspace(kernel, target)
    if kernel.kind in attention.NAMES:
        return attention.attention_workspace(kernel)
    if kernel.kind == "cond":
        return control.cond_workspace(kernel, target)
    if kernel.kind == "cached_attention":
        return caches.attention_workspace(kernel)
    if kernel.kind in ("max_pool", "max_unpool"):
        return pooling.pooling_workspace(kernel)
    if kernel.kind.startswith("winograd"):
        return winograd.winograd_workspace(kernel)
    if kernel.kind == "byte_product":
        return quantised.workspace(kernel)
    if kernel.role in ("map", "partial") and kernel.kind.startswith("convolution"):
        return lane_convolutions.convolution_workspace(kernel, block)
    if kernel.role == "whole" and kernel.kind == "matmul" and (few := matvec.shape_of(kernel)) is not None:
        return matvec.workspace(few)
    if kernel.role == "whole" and kernel.anchor is not None and kernel.anchor.op.kind is Kind.CONTRACTION:
        found = products.product_workspace if kernel.kind == "matmul" else convolutions.convolution_workspace
        return found(kernel, target.machine)
    return 0


def emit(context: Context) -> KernelText:
    """The C function of a kernel."""
    table = BLOCK_EMITTERS if context.lanes else TILE_EMITTERS
    kind = context.kernel.kind
    if kind not in table:
        where = context.kernel.where
        raise UnsupportedError(
            f"the C backend has no kernel for {kind} ({', '.join(str(v.type) for v in context.kernel.roots)})"
            + (f", used at {where[0].file}:{where[0].line}" if where else "")
            + '; use compile(backend="numpy")'
        )
    if not any(root.size for root in context.kernel.roots):
        return context.function("", LANE_PARAMETERS if context.lanes else TILE_PARAMETERS)
    return table[kind](context)


def runs_on_lanes(anchor: Node) -> bool:
    """Is there a batch kernel for this op and its element type?"""
    if anchor.op.kind is Kind.CONTRACTION and anchor.outputs[0].dtype.short not in ("f32", "f64"):
        return False
    return anchor.op.name in BLOCK_EMITTERS


def takes(node: Node) -> bool:
    """Is there a kernel for this composite?"""
    if node.op.name in attention.NAMES:
        return attention.takes(node)
    if node.op.name in cells.CELLS:
        return cells.takes(node)
    return node.op.name in TILE_EMITTERS


def support() -> Support:
    """The table that the scheduler asks."""
    elementwise = {
        name
        for name, op in REGISTRY.items()
        if isinstance(op, type) and issubclass(op, Op) and op.kind is Kind.ELEMENTWISE
    }
    return Support(
        pulled=frozenset(elementwise | set(MOVES)),
        looping=frozenset(
            {*REDUCTIONS, "sum_pool", "max_pool_gather", *cells.CELLS, "scatter", "cumulative_sum", "dynamic_update_slice"}
        ),
        epilogue=frozenset(
            {
                "matmul",
                "convolution",
                "convolution_input_gradient",
                "convolution_weight_gradient",
                "winograd_convolution",
                "winograd_weight_gradient",
                "sum",
                "sum_pool",
            }
        ),
        lanes=runs_on_lanes,
        keep=iterations.keep_panels,
        workspace=workspace,
        takes=takes,
    )
