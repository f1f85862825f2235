"""A compiled program compared with the NumPy references, kernel by kernel on what each kernel really read.

In: a program and the inputs of a call. Out: nothing, or a `CheckError` that names the kernel, the user's
line, the module and the worst element. State is not touched: everything runs on copies. Called by a program
before its first call, where `compile(check=True)` or THALWEG_CHECK=1 asks for it.

Each kernel is judged alone, so that an error is found where it is made and not where it shows, and rounding
cannot pile up from kernel to kernel. Then the program itself runs with its own number of threads and must
give the same bits as its kernels did one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from thalweg.errors import CheckError
from thalweg.graph import Node
from thalweg.plan import Plan
from thalweg.rounding import DISTURBANCES, Mismatch, disturb, is_coarse, mismatch, moved
from thalweg.runtime.program import NativeProgram
from thalweg.runtime.watch import Observation, kernel_text, total, watch

Array = np.ndarray[Any, Any]

_PERSISTENT = 48  # disturbances after which an element that still differs is not on the edge of a decision


def check(program: NativeProgram, inputs: Sequence[Array]) -> None:
    """Compare every kernel of the program on these inputs and the present state; raises `CheckError`."""
    before = [np.array(holder.data) for holder, _ in program.states]
    alone = [array.copy() for array in before]
    outputs = watch(program, inputs, alone, lambda seen: compare(program.plan, seen, program.graph.name))
    together = [array.copy() for array in before]
    results = program.run_on(inputs, together)
    names = [f"output {number}" for number in range(len(outputs))]
    names += [holder.name or "state" for holder, _ in program.states]
    for name, one, other in zip(names, [*outputs, *alone], [*results, *together], strict=True):
        if one.tobytes() != other.tobytes():
            raise CheckError(
                f"{program.graph.name}: {name} has other bits than its kernels gave one by one on one thread."
                f" {_ENDING}"
            )


_ENDING = (
    "The state is as it was before the call. This is a defect of Thalweg or of the C compiler: please report "
    "it with the files that THALWEG_DUMP=DIR writes"
)


def compare(plan: Plan, seen: Observation, name: str) -> None:
    """Compare what one kernel wrote with the references of its nodes; raises `CheckError`."""
    wrong = _wrong(plan, seen, DISTURBANCES)
    if wrong is not None:
        wrong = _wrong(plan, seen, _PERSISTENT)
    if wrong is not None:
        raise CheckError(_report(plan, seen, name, *wrong))


def _wrong(plan: Plan, seen: Observation, disturbances: int) -> tuple[int, Mismatch] | None:
    """The first root of the kernel that is wrong, and how."""
    nodes = seen.kernel.nodes
    expected = _evaluate(plan, seen, None)
    others = [_evaluate(plan, seen, np.random.Generator(np.random.PCG64(s))) for s in range(disturbances)]
    coarse = is_coarse(nodes)
    for number, ((root, found), reference) in enumerate(zip(seen.found(), expected, strict=True)):
        if not nodes and not seen.slots:  # a copy: each bit
            found, reference = (array.view(f"u{root.dtype.itemsize}") for array in (found, reference))
        difference = mismatch(found, reference, [other[number] for other in others], coarse)
        if difference is not None:
            return number, difference
    return None


def _evaluate(plan: Plan, seen: Observation, generator: np.random.Generator | None) -> list[Array]:
    """The kernel's roots by the references; with a generator, as far away as rounding may move them."""
    kernel, known = seen.kernel, seen.known(plan)
    if generator is not None and kernel.role == "combine":
        for key, slots in seen.slots.items():
            known.arrays[key] = total(moved(slots, generator))
    with np.errstate(all="ignore"):
        for node in kernel.nodes:
            inputs = [known[value] for value in node.inputs]
            if generator is None:
                known.set(node, node.op.reference(*inputs))
            else:
                known.set(node, disturb(node, inputs, generator))
    return [known[root] for root in kernel.roots]


def _report(plan: Plan, seen: Observation, name: str, number: int, difference: Mismatch) -> str:
    kernel = seen.kernel
    root = kernel.roots[number]
    maker: Node | None = root.node
    names = ", ".join(dict.fromkeys(node.op.name for node in kernel.nodes)) or kernel.kind
    lines = [
        f"{name} does not compute what the NumPy reference does",
        f"  {kernel_text(plan, seen)}",
        f"  {root.type} of {names}: {difference}",
    ]
    if maker is not None and maker.scope:
        lines.append(f"  in module {maker.scope}")
    spans = maker.where if maker is not None and maker.where else kernel.where
    lines += [f"  at {span.file}:{span.line} in {span.function}\n      {span.text}" for span in spans[:4]]
    return "\n".join([*lines, "  " + _ENDING])
