"""Cases of sequence models: attention, LSTM, a small GPT and BERT's shape, for Thalweg and its peers.

In: a case, a side, a number of threads. Out: median seconds of a repetition; `bench.cases` calls `measure`.
The networks are written once: Thalweg's layers have PyTorch's names, so one text serves both.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from thalweg.bench.measuring import Case, repeat

ATTENTION = (8, 4, 256, 64)  # batch, heads, length, size of a head


class Transformer(NamedTuple):
    """Sizes of a Transformer; pre-norm and causal with the head tied to the embedding, or post-norm."""

    layers: int
    heads: int
    width: int
    length: int
    vocabulary: int
    causal: bool

    def operations(self, batch: int) -> int:
        """Of the products of a forward pass."""
        linear = 12 * self.width**2 * self.layers + (self.vocabulary * self.width if self.causal else 0)
        attention = 2 * self.length * self.width * self.layers // (2 if self.causal else 1)
        return 2 * batch * self.length * (linear + attention)


class Recurrent(NamedTuple):
    """Sizes of an LSTM."""

    inputs: int
    hidden: int
    length: int

    def operations(self, batch: int) -> int:
        """Of the products of a forward pass."""
        return 2 * batch * self.length * 4 * self.hidden * (self.inputs + self.hidden)


NANO = Transformer(4, 4, 256, 256, 1024, True)
BERT = Transformer(12, 12, 768, 128, 30522, False)
LSTM = Recurrent(64, 256, 64)

CASES = [
    Case("attention forward and backward, causal", ("torch",)),
    Case("attention forward and backward, full", ("torch",)),
    Case("lstm step, batch 32", ("torch",), 3 * LSTM.operations(32)),
    *(Case(f"lstm inference, batch {b}", ("torch", "onnxruntime"), LSTM.operations(b)) for b in (1, 32)),
    Case("gpt nano step, batch 8", ("torch", "torch.compile"), 3 * NANO.operations(8)),
    *(Case(f"bert inference, batch {b}", ("torch", "torch.compile"), BERT.operations(b)) for b in (1, 8)),
]
NAMES = frozenset(case.name for case in CASES)


def measure(case: str, side: str, threads: int) -> float:
    """Median seconds of one repetition."""
    if side == "onnxruntime":
        return _onnxruntime_lstm(case, threads)
    return _own(case, threads) if side == "thalweg" else _torch(case, threads, side == "torch.compile")


def transformer(nn: Any, functional: Any, sizes: Transformer) -> Any:
    """The network as a module of `nn`: tokens [B, T] to scores [B, T, vocabulary] or states [B, T, D]."""
    width, heads = sizes.width, sizes.heads

    class Block(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
            self.mix, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
            self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

        def attention(self, x: Any) -> Any:
            batch, length = x.shape[:2]
            mixed = self.mix(x)
            parts = [
                mixed[..., i * width : (i + 1) * width]
                .reshape(batch, length, heads, width // heads)
                .swapaxes(1, 2)
                for i in range(3)
            ]
            found = functional.scaled_dot_product_attention(*parts, is_causal=sizes.causal)
            return self.out(found.swapaxes(1, 2).reshape(batch, length, width))

        def inner(self, x: Any) -> Any:
            approximate = "tanh" if sizes.causal else "none"
            return self.down(functional.gelu(self.up(x), approximate=approximate))

        def forward(self, x: Any) -> Any:
            if sizes.causal:
                x = x + self.attention(self.first(x))
                return x + self.inner(self.second(x))
            x = self.first(x + self.attention(x))
            return self.second(x + self.inner(x))

    class Network(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.tokens = nn.Embedding(sizes.vocabulary, width)
            self.positions = nn.Embedding(sizes.length, width)
            self.blocks = nn.ModuleList([Block() for _ in range(sizes.layers)])
            self.norm = nn.LayerNorm(width)

        def forward(self, ids: Any) -> Any:
            x = self.tokens(ids) + self.positions.weight
            x = x if sizes.causal else self.norm(x)
            for block in self.blocks:
                x = block(x)
            return self.norm(x) @ self.tokens.weight.T if sizes.causal else x

    return Network()


def arrays(case: str) -> tuple[np.ndarray[Any, Any], ...]:
    """Inputs (and labels) of a case."""
    random, batch = np.random.default_rng(0), int(case.split()[-1]) if case[-1].isdigit() else 0
    if case.startswith("attention"):
        return tuple(random.standard_normal(ATTENTION).astype(np.float32) for _ in range(4))
    if case.startswith("lstm"):
        shapes = [(LSTM.length, batch, size) for size in (LSTM.inputs, LSTM.hidden)]
        return tuple(random.standard_normal(shape).astype(np.float32) for shape in shapes)
    sizes = NANO if case.startswith("gpt") else BERT
    return tuple(random.integers(0, sizes.vocabulary, (batch, sizes.length)) for _ in range(2))


def _loss(case: str, functional: Any, model: Any, x: Any, y: Any) -> Any:
    if case.startswith("lstm"):
        return ((model(x)[0] - y) ** 2).mean()
    scores = model(x)
    return functional.cross_entropy(scores.reshape(-1, scores.shape[-1]), y.reshape(-1))


def _own(case: str, threads: int) -> float:
    import thalweg as tw
    from thalweg import nn, optim

    given = [tw.tensor(array) for array in arrays(case)]
    if case.startswith("attention"):

        def both(query: Any, key: Any, value: Any, g: Any) -> Any:
            attention = nn.functional.scaled_dot_product_attention
            result, back = tw.vjp(
                lambda q, k, v: attention(q, k, v, is_causal="causal" in case), query, key, value
            )
            return (result, *back(g))

        run = tw.compile(both, threads=threads)
        return repeat(lambda: run(*given))
    tw.manual_seed(0)
    model: Any = nn.LSTM(LSTM.inputs, LSTM.hidden)
    if not case.startswith("lstm"):
        model = transformer(nn, nn.functional, NANO if case.startswith("gpt") else BERT)
    if "inference" in case:
        model.eval()
        infer = tw.compile(lambda x: model(x)[0] if case.startswith("lstm") else model(x), threads=threads)
        return repeat(lambda: infer(given[0]))
    optimizer = (optim.Adam if case.startswith("lstm") else optim.AdamW)(model.parameters(), lr=1e-4)

    def step(x: Any, y: Any) -> Any:
        loss = _loss(case, nn.functional, model, x, y)
        optimizer.minimize(loss)
        return loss

    train = tw.compile(step, threads=threads)
    return repeat(lambda: train(*given))


def _torch(case: str, threads: int, compiled: bool) -> float:
    torch = importlib.import_module("torch")
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    finish: Callable[[Any], Any] = torch.compile if compiled else lambda function: function
    functional = torch.nn.functional
    given = [torch.from_numpy(array) for array in arrays(case)]
    if case.startswith("attention"):
        operands = [x.requires_grad_() for x in given[:3]]

        def both() -> None:
            for x in operands:
                x.grad = None
            causal = "causal" in case
            functional.scaled_dot_product_attention(*operands, is_causal=causal).backward(given[3])

        return repeat(both)
    model: Any = torch.nn.LSTM(LSTM.inputs, LSTM.hidden)
    if not case.startswith("lstm"):
        model = transformer(torch.nn, functional, NANO if case.startswith("gpt") else BERT)
    if "inference" in case:
        infer = finish(model.eval())
        with torch.inference_mode():
            return repeat(lambda: infer(given[0]))
    family = torch.optim.Adam if case.startswith("lstm") else torch.optim.AdamW
    optimizer = family(model.parameters(), lr=1e-4, fused=compiled)
    loss_of = finish(lambda x, y: _loss(case, functional, model, x, y))

    def step() -> None:
        optimizer.zero_grad()
        loss_of(*given).backward()
        optimizer.step()

    return repeat(step)


def _onnxruntime_lstm(case: str, threads: int) -> float:
    """The LSTM as one ONNX node."""
    runtime, onnx = importlib.import_module("onnxruntime"), importlib.import_module("onnx")
    helper, random = onnx.helper, np.random.default_rng(0)
    x = arrays(case)[0]
    shapes = {
        "w": (1, 4 * LSTM.hidden, LSTM.inputs),
        "r": (1, 4 * LSTM.hidden, LSTM.hidden),
        "b": (1, 8 * LSTM.hidden),
    }
    weights = [
        onnx.numpy_helper.from_array(random.uniform(-0.05, 0.05, shape).astype(np.float32), name)
        for name, shape in shapes.items()
    ]
    node = helper.make_node("LSTM", ["x", "w", "r", "b"], ["y"], hidden_size=LSTM.hidden)
    result = (x.shape[0], 1, x.shape[1], LSTM.hidden)
    values = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, list(shape))
        for name, shape in (("x", x.shape), ("y", result))
    ]
    graph = helper.make_graph([node], "network", values[:1], values[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    session = runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return repeat(lambda: session.run(None, {"x": x}))
