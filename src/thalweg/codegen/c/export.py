"""A program as plain C files that need nothing else: no runtime, no memory allocation, no Python.

In: functions, each a traced graph with its plan, and what their state holds. Out: a directory with model.h, model.c,
weights.bin (or weights.c), main.c, a Makefile, a CMakeLists.txt and a README.md. Called by `Compiled.export_c`.

The text of the kernels is the one that `generate` gives to the Python run; only the way in differs: a struct of the caller
holds state, arena and scratch, and the phases run one task after the other. model.c contains the vector library whole,
so that the preprocessor chooses vectors or plain C99 scalars where it is compiled.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from thalweg.codegen.c import library
from thalweg.codegen.c.program import PROGRAM, Kernels, indented
from thalweg.errors import ArgumentError, DataError, UnsupportedError
from thalweg.graph import Graph, Node
from thalweg.plan import ALIGNMENT, Plan, aligned
from thalweg.types import Type

Array = np.ndarray[Any, Any]

MAGIC = b"thalweg1"
HEADER_BYTES = 32  # of weights.bin: magic, digest of the layout, bytes that follow, zero
C_TYPES = {
    "f32": "float", "f64": "double", "f16": "uint16_t", "bf16": "uint16_t", "bool": "uint8_t",
    "i8": "int8_t", "i16": "int16_t", "i32": "int32_t", "i64": "int64_t",
    "u8": "uint8_t", "u16": "uint16_t", "u32": "uint32_t", "u64": "uint64_t",
}  # fmt: skip
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")


@dataclass
class Function:
    """One entry point of an exported program."""

    name: str
    graph: Graph
    plan: Plan
    inputs: list[str]  # names of the arguments, which come first among the graph's inputs
    outputs: list[str]
    captured: list[Array] = field(default_factory=list)  # values of the graph's further inputs


@dataclass(eq=False)
class Tensor:
    """A tensor of the state: its name, where it lies in the image of the state, and its value at export."""

    name: str
    type: Type
    value: Array
    changes: bool  # does some function update it, or may the caller?
    offset: int = 0
    setter: str = ""  # the name of a number that only the caller changes, such as a learning rate

    @property
    def is_zero(self) -> bool:
        """Are all its bits zero? Then no table needs to hold it."""
        return not self.value.view(np.uint8).any() if self.value.size else True


class Export:
    """An exported program before and after it is written."""

    def __init__(
        self,
        name: str,
        functions: Sequence[Function],
        embed_weights: bool = False,
        normalisation: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        for word in (name, *(function.name for function in functions)):
            if not _NAME.fullmatch(word) or word in _WORDS:
                raise ArgumentError(f"{word!r} cannot be a name in C: write letters, digits and '_' only")
        if len({function.name for function in functions}) < len(functions):
            raise ArgumentError(f"two functions have one name: {', '.join(f.name for f in functions)}")
        self.name = name
        self.functions = list(functions)
        self.embed_weights = embed_weights
        self.normalisation = normalisation  # mean and standard deviation of the pixels that main.c reads
        self.remarks = ""  # Markdown for README.md: why the program is as it is
        self._of_holder: dict[int, Tensor] = {}
        self.tensors = self._tensors()

    # ---- memory --------------------------------------------------------------------------------------------

    def _tensors(self) -> list[Tensor]:
        """The state of all functions: first what changes, then what stays as it is."""
        changed = {
            id(state.holder)
            for f in self.functions
            for state in f.plan.graph.state
            if state.after is not None
        }
        found: list[Tensor] = []
        for function in self.functions:
            for state in function.plan.graph.state:
                holder: Any = state.holder
                if id(holder) in self._of_holder:
                    continue
                label = _unique(holder.name or type(holder).__name__.lower(), [t.name for t in found])
                value = np.ascontiguousarray(holder.data)
                tensor = Tensor(label, state.before.type, value, id(holder) in changed)
                if not tensor.type.shape and not tensor.changes and tensor.type.dtype.is_floating:
                    tensor.changes = True
                    tensor.setter = identifier(label, [t.setter for t in found])
                self._of_holder[id(holder)] = tensor
                found.append(tensor)
            for number, array in enumerate(function.captured):
                position = len(function.inputs) + number
                type_ = function.plan.graph.inputs[position].type
                tensor = Tensor(
                    f"{function.name}.captured{number}", type_, np.ascontiguousarray(array), False
                )
                self._of_holder[id(array)] = tensor
                found.append(tensor)
        found.sort(key=lambda tensor: not tensor.changes)
        offset = 0
        for tensor in found:
            tensor.offset = offset
            offset += aligned(tensor.type.nbytes)
        return found

    @cached_property
    def changing_bytes(self) -> int:
        """Bytes of what some function updates: the beginning of the image."""
        return sum(aligned(t.type.nbytes) for t in self.tensors if t.changes)

    @cached_property
    def image_bytes(self) -> int:
        """Bytes of the whole state."""
        return sum(aligned(t.type.nbytes) for t in self.tensors)

    @property
    def state_bytes(self) -> int:
        """Bytes of state in the caller's struct: embedded weights that nothing updates stay where they are."""
        return self.changing_bytes if self.embed_weights else self.image_bytes

    @property
    def arena_bytes(self) -> int:
        return max(aligned(f.plan.arena_bytes) for f in self.functions)

    @property
    def scratch_bytes(self) -> int:
        return max(aligned(f.plan.thread_bytes) for f in self.functions)

    @property
    def memory_bytes(self) -> int:
        """Bytes of the struct: all memory that the program needs beside inputs, outputs, constants and stack."""
        return sum(max(part, ALIGNMENT) for part in (self.state_bytes, self.arena_bytes, self.scratch_bytes))

    @property
    def argument_bytes(self) -> int:
        """Bytes of the inputs and outputs of one call, at most."""
        return max(
            sum(v.type.nbytes for v in (*f.plan.graph.inputs[: len(f.inputs)], *f.plan.graph.outputs))
            for f in self.functions
        )

    @property
    def _saved(self) -> list[Tensor]:
        return [t for t in self.tensors if t.changes or not self.embed_weights]

    @property
    def digest(self) -> int:
        """Identifies the layout of the saved state."""
        text = "\n".join(f"{t.name} {t.type} {t.offset}" for t in self._saved)
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")

    def saved_state(self) -> bytes:
        """What `load` of the C program takes: the state as it is now in Python."""
        image = bytearray(self.state_bytes)
        for tensor in self._saved:
            image[tensor.offset : tensor.offset + tensor.value.nbytes] = tensor.value.tobytes()
        return struct.pack("<8sQQQ", MAGIC, self.digest, len(image), 0) + bytes(image)

    def read_state(self, path: str | os.PathLike[str]) -> dict[str, Array]:
        """The tensors that the C program has saved, by name. Raises `DataError` for another file."""
        content = Path(path).read_bytes()
        expected = self.state_bytes
        found = struct.unpack_from("<8sQQQ", content) if len(content) >= HEADER_BYTES else None
        if (
            found is None
            or found != (MAGIC, self.digest, expected, 0)
            or len(content) != HEADER_BYTES + expected
        ):
            raise DataError(f"{path} does not hold the state of the exported program {self.name!r}")
        return {
            t.name: np.frombuffer(content, t.type.dtype.numpy, t.type.size, HEADER_BYTES + t.offset)
            .reshape(t.type.shape)
            .copy()
            for t in self._saved
        }

    # ---- text ----------------------------------------------------------------------------------------------

    def files(self) -> dict[str, bytes]:
        """Every file of the export, by name."""
        texts = {
            "model.h": self.header(),
            "model.c": self.model(),
            "main.c": self.main(),
            "Makefile": _template("Makefile", self._words()),
            "CMakeLists.txt": _template("CMakeLists.txt", self._words()),
            "README.md": self.readme(),
        }
        if self.embed_weights:
            texts["weights.c"] = self.weights()
        written = {name: text.encode() for name, text in texts.items()}
        if not self.embed_weights:
            written["weights.bin"] = self.saved_state()
        return written

    def write(self, directory: str | os.PathLike[str]) -> Export:
        """Write the files into a directory, which is made where it does not exist."""
        place = Path(directory)
        try:
            place.mkdir(parents=True, exist_ok=True)
            for name, content in self.files().items():
                (place / name).write_bytes(content)
        except OSError as error:
            raise DataError(f"cannot write the export to {str(place)!r}: {error.strerror}") from error
        return self

    def _words(self) -> dict[str, str]:
        sources = "model.c weights.c" if self.embed_weights else "model.c"
        return {
            "name": self.name,
            "NAME": self.name.upper(),
            "sources": sources,
            "state_bytes": str(self.state_bytes),
            "arena_bytes": str(self.arena_bytes),
            "scratch_bytes": str(self.scratch_bytes),
            "memory_bytes": str(self.memory_bytes),
            "saved_bytes": str(HEADER_BYTES + self.state_bytes),
            "mean": f"{self.normalisation[0]:#.9g}",
            "std": f"{self.normalisation[1]:#.9g}",
            "digest": f"0x{self.digest:016x}u",
        }

    def _signature(self, function: Function) -> str:
        graph = function.plan.graph
        parts = [f"{self.name} *m"]
        for label, value in zip(function.inputs, graph.inputs, strict=False):
            parts.append(f"const {_parameter(value.type, label)}")
        parts += [_parameter(v.type, label) for v, label in zip(graph.outputs, function.outputs, strict=True)]
        return f"int {self.name}_{function.name}({', '.join(parts)})"

    def header(self) -> str:
        """model.h."""
        declared = []
        for function in self.functions:
            graph = function.plan.graph
            lines = [f"{label}: {v.type}" for label, v in zip(function.inputs, graph.inputs, strict=False)]
            results = [f"{label}: {v.type}" for label, v in zip(function.outputs, graph.outputs, strict=True)]
            said = f"{', '.join(lines) or 'nothing'} -> {', '.join(results) or 'nothing'}"
            declared.append(f"/* {said}; row-major. */\n{self._signature(function)};")
        begin = _INIT_DECLARATION.replace("@name@", self.name) if self.embed_weights else ""
        setters = "\n".join(f"{text};" for text in map(self._setter, self.tensors) if text)
        if setters:
            begin += f"\n/* Numbers that the functions read and do not change. */\n{setters}\n"
        words = {**self._words(), "functions": "\n\n".join(declared), "init": begin}
        return _template("model.h", words)

    def model(self) -> str:
        """model.c."""
        kernels = Kernels()
        phases = [kernels.phases(function.plan) for function in self.functions]
        tables = [
            [kernels.constant(array) for array in function.plan.constant_arrays()]
            for function in self.functions
        ]
        functions: set[str] = set().union(*(part.functions for part in kernels.parts))
        entries = [
            self._entry(function, names, table)
            for function, names, table in zip(self.functions, phases, tables, strict=True)
        ]
        entries += [
            f"{head} {{\ncopy(m->state + {tensor.offset}, &value, sizeof value);\n}}"
            for tensor in self.tensors
            if (head := self._setter(tensor))
        ]
        words = {
            **self._words(),
            "vector": library.header(),
            "mathematics": library.text_for(sorted(functions)) if functions else "",
            "program": PROGRAM,
            "kernels": indented("\n".join(part.text for part in kernels.parts)),
            "entries": indented("\n".join(entries)),
            "errors": "\n".join(
                f"    case {code}: return {_quoted(_failure(node))};"
                for code, node in enumerate(kernels.failures, 1)
            ),
            "init": self._init(),
        }
        return _template("model.c", words)

    def _entry(self, function: Function, phases: Sequence[str], constants: Sequence[str]) -> str:
        """The C function that a caller sees: a table of pointers, then the phases in order."""
        plan = function.plan
        table = [f"(void *){label}" for label in function.inputs]
        table += [self._address(self._of_holder[id(array)]) for array in function.captured]
        table += [self._address(self._of_holder[id(state.holder)]) for state in plan.graph.state]
        table += [*(f"(void *){label}" for label in function.outputs), *constants]
        lines = [
            f"{self._signature(function)} {{",
            f"void *const tw_io[] = {{{', '.join(table) or '0'}}};",
            "program tw_call = {.arena = (char *)m->arena, .scratch = (char *)m->scratch, .io = tw_io};",
        ]
        for name, phase in zip(phases, plan.phases, strict=True):
            call = f"{name}(&tw_call, tw_task, 0);"
            lines.append(
                f"{name}(0, tw_run_alone, &tw_call);" if phase.loop is not None
                else f"for (int64_t tw_task = 0; tw_task < {phase.tasks}; tw_task++) {call}" if phase.tasks > 1
                else f"{{ const int64_t tw_task = 0; {call} }}"
            )  # fmt: skip
            lines.append("if (tw_call.error) return (int)tw_call.error;")
        return "\n".join([*lines, "return 0;", "}"])

    def _setter(self, tensor: Tensor) -> str:
        """The head of the function that changes a number, or nothing."""
        if not tensor.setter:
            return ""
        return (
            f"void {self.name}_set_{tensor.setter}({self.name} *m, {C_TYPES[tensor.type.dtype.short]} value)"
        )

    def _address(self, tensor: Tensor) -> str:
        if self.embed_weights and not tensor.changes:
            return f"(void *)({self.name}_weights + {self._place(tensor)})"
        return f"(void *)(m->state + {tensor.offset})"

    # ---- weights in the program ----------------------------------------------------------------------------

    def _place(self, tensor: Tensor) -> int:
        """Where a tensor lies in the array of weights, which leaves out what begins as zero and changes."""
        return sum(aligned(t.type.nbytes) for t in self.tensors[: self.tensors.index(tensor)] if _embedded(t))

    def _init(self) -> str:
        if not self.embed_weights:
            return ""
        copies = [
            f"    copy(m->state + {t.offset}, {self.name}_weights + {self._place(t)}, {t.type.nbytes});"
            for t in self.tensors
            if t.changes and _embedded(t)
        ]
        return _INIT.replace("@name@", self.name).replace("@copies@", "\n".join(copies))

    def weights(self) -> str:
        """weights.c: the first values of what changes, then what stays."""
        image = b"".join(
            t.value.tobytes().ljust(aligned(t.type.nbytes), b"\0") for t in self.tensors if _embedded(t)
        ) or bytes(ALIGNMENT)
        words = np.frombuffer(image, "<u4")
        rows = [", ".join(f"0x{int(w):08x}" for w in words[i : i + 10]) for i in range(0, words.size, 10)]
        content = ",\n    ".join(rows)
        return (
            f"/* The weights of {self.name} as little-endian words of 32 bits. */\n#include <stdint.h>\n\n"
            f"extern const uint32_t {self.name}_words[{words.size}];\n"
            f"const uint32_t {self.name}_words[{words.size}] {_ALIGNED} = {{\n    {content}}};\n"
        )

    # ---- the program around it -----------------------------------------------------------------------------

    def main(self) -> str:
        """main.c: runs a function on files."""
        callers, table = [], []
        most: dict[str, list[int]] = {"inputs": [0], "outputs": [0]}
        for function in self.functions:
            graph = function.plan.graph
            values = graph.inputs[: len(function.inputs)]
            arguments = [f"in[{i}]" for i in range(len(values))] + [
                f"out[{i}]" for i in range(len(graph.outputs))
            ]
            listed = ", ".join(["m", *arguments])
            callers.append(
                f"static int call_{function.name}({self.name} *m, void **in, void **out) {{\n"
                f"    (void)in, (void)out;\n    return {self.name}_{function.name}({listed});\n}}"
            )
            ins = ", ".join(
                _described(label, v.type) for label, v in zip(function.inputs, values, strict=True)
            )
            outs = ", ".join(
                _described(label, v.type) for label, v in zip(function.outputs, graph.outputs, strict=True)
            )
            nothing = "{0, 0, 0, 0}"
            table.append(
                f'    {{"{function.name}", call_{function.name}, {len(values)}, {len(graph.outputs)}, '
                f"{{{ins or nothing}}}, {{{outs or nothing}}}}},"
            )
            for key, group in (("inputs", values), ("outputs", graph.outputs)):
                most[key].append(sum(aligned(v.type.nbytes) for v in group))
        words = {
            **self._words(),
            "callers": "\n".join(callers),
            "table": "\n".join(table),
            "most": str(
                max(1, *(len(f.plan.graph.inputs) + len(f.plan.graph.outputs) for f in self.functions))
            ),
            "input_bytes": str(max(ALIGNMENT, *most["inputs"])),
            "output_bytes": str(max(ALIGNMENT, *most["outputs"])),
            "begin": f"{self.name}_init(&memory);" if self.embed_weights else "",
            "weights": "0" if self.embed_weights else '"weights.bin"',
        }
        return _template("main.c", words)

    def readme(self) -> str:
        """README.md: functions, bytes, how to build, the tensors of the state."""
        functions = "\n".join(f"    {self._signature(function)};" for function in self.functions)
        constants = sum(a.nbytes for f in self.functions for a in f.plan.constant_arrays())
        rows = "\n".join(
            f"| {t.name} | {t.type} | {t.offset if t in self._saved else 'in weights.c'} | "
            f"{t.type.nbytes:,} | {'yes' if t.changes else 'no'} |"
            for t in self.tensors
        )
        arguments = "\n".join(
            f"| {f.name} | {sum(v.type.nbytes for v in f.plan.graph.inputs[: len(f.inputs)]):,} | "
            f"{sum(v.type.nbytes for v in f.plan.graph.outputs):,} | {f.plan.operations:,} |"
            for f in self.functions
        )
        words = {
            **{k: f"{int(v):,}" if k.endswith("_bytes") else v for k, v in self._words().items()},
            "functions": functions,
            "constant_bytes": f"{constants:,}",
            "tensors": rows,
            "remarks": f"{self.remarks}\n" if self.remarks else "",
            "arguments": arguments,
            "where": "in `weights.c`, linked into the program" if self.embed_weights else "in `weights.bin`",
            "first": f"{self.name}_init(&m)" if self.embed_weights else f"{self.name}_load(&m, bytes, count)",
        }
        return _template("README.md", words)

    def __repr__(self) -> str:
        names = ", ".join(function.name for function in self.functions)
        return f"<export {self.name}: {names}; {self.memory_bytes:,} bytes of memory>"


_ALIGNED = f"\n#ifdef __GNUC__\n    __attribute__((aligned({ALIGNMENT})))\n#endif\n   "
_INIT_DECLARATION = "\n/* The weights as they were when the program was exported. Call it before anything else. */\nvoid @name@_init(@name@ *m);\n"
_INIT = """
extern const uint32_t @name@_words[];
#define @name@_weights ((const unsigned char *)@name@_words)

void @name@_init(@name@ *m) {
    for (size_t i = 0; i < sizeof m->state; i++) m->state[i] = 0;
@copies@
}
"""


def _unique(label: str, taken: Sequence[str]) -> str:
    """The label, with a number behind it where two tensors would share it."""
    found, number = label, 2
    while found in taken:
        found, number = f"{label} ({number})", number + 1
    return found


def _embedded(tensor: Tensor) -> bool:
    """Does the array of weights hold it?"""
    return not (tensor.changes and tensor.is_zero)


def _template(name: str, words: dict[str, str]) -> str:
    """A template of this package with `@word@` replaced."""
    text = (resources.files(__package__) / "templates" / name).read_text(encoding="utf-8")
    return re.sub(r"@(\w+)@", lambda found: words.get(found[1], found[0]), text)


def _parameter(type_: Type, label: str) -> str:
    return f"{C_TYPES[type_.dtype.short]} {label}[{max(type_.size, 1)}]"


def _described(label: str, type_: Type) -> str:
    """An argument in main.c's table: name, element type, elements, rows."""
    rows = type_.shape[0] if type_.shape else 1
    return f'{{"{label}", "{type_.dtype.short}", {type_.size}, {rows}}}'


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=True)


def _failure(node: Node) -> str:
    """What an error code means."""
    types = ", ".join(str(value.type) for value in node.inputs)
    inside = f" in {node.scope}" if node.scope else ""
    return f"an index of {node.op.name}({types}){inside} is out of range"


def identifier(text: str, taken: Sequence[str] = ()) -> str:
    """A name in C close to `text` that is not taken."""
    plain = re.sub(r"\W+", "_", text, flags=re.ASCII).strip("_") or "value"
    plain = plain if plain[0].isalpha() else f"value_{plain}"
    if plain in _WORDS:
        plain += "_"
    found, number = plain, 2
    while found in taken:
        found, number = f"{plain}_{number}", number + 1
    return found


# Words of C and C++, and the names that an entry point uses itself.
_WORDS = frozenset(
    re.findall(
        r"\w+",
        """auto break case char class const continue default delete do double else enum extern float for goto if
        inline int long m new operator private public register restrict return short signed sizeof
        static struct switch template this typedef union unsigned void volatile while""",
    )
)


def require_exportable(graph: Graph, what: str) -> None:
    """Refuse what an exported program cannot hold."""
    for value in (*graph.inputs, *graph.outputs):
        if value.dtype.short not in C_TYPES:
            raise UnsupportedError(f"{what} has a value of {value.dtype}, which C99 has no type for")
