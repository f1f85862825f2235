"""The other frameworks' sides of the cases: the same networks, in the way that each recommends for speed."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np

from thalweg.bench.cases import MLP
from thalweg.bench.measuring import PEERS, repeat
from thalweg.bench.own import images
from thalweg.bench.random_networks import draw

Array = np.ndarray[Any, Any]
PACKAGES = {
    "torch": ("torch",),
    "torch.compile": ("torch",),
    "jax": ("jax",),
    "onnxruntime": ("onnxruntime", "onnx"),
    "numpy": ("numpy",),
}


def installed() -> list[str]:
    """The peers that can be measured here."""
    return [p for p in PEERS if all(importlib.util.find_spec(name) is not None for name in PACKAGES[p])]


def measure(case: str, side: str, threads: int) -> float:
    """Median seconds of one repetition."""
    if side == "jax":
        return _jax(case, threads)
    if side == "onnxruntime":
        return _onnxruntime(case, threads)
    return _torch(case, threads, compiled=side == "torch.compile")


# ---- PyTorch -----------------------------------------------------------------------------------------------


def torch_model(case: str) -> Any:
    """The network of a case in PyTorch."""
    nn = importlib.import_module("torch.nn")
    layers: list[Any] = []
    if case.startswith("random"):
        network = draw(int(case.replace(",", "").split()[2]))
        for c in network.layers:
            layers.append(nn.Conv2d(c.in_channels, c.out_channels, c.kernel_size, c.stride, c.padding))
            layers += [nn.ReLU(), nn.MaxPool2d(c.pool)] if c.pool > 1 else [nn.ReLU()]
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(network.features, 10))
    if case.startswith("mlp"):
        layers.append(nn.Flatten())
        for incoming, outgoing in pairwise(MLP):
            layers += [nn.Linear(incoming, outgoing), nn.ReLU()]
        return nn.Sequential(*layers[:-1])
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10),
    )  # fmt: skip


def _torch(case: str, threads: int, compiled: bool) -> float:
    """Eager, or with `torch.compile` for the model (its optimiser stays eager and fused)."""
    torch = importlib.import_module("torch")
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    finish: Callable[[Any], Any] = torch.compile if compiled else lambda function: function
    if case == "trivial compiled call":
        value, double = torch.ones(4), finish(lambda x: x + x)
        return repeat(lambda: double(value))
    x, y = (torch.from_numpy(array) for array in images(case))
    model = torch_model(case)
    if "inference" in case:
        forward = finish(model.eval())
        with torch.inference_mode():
            return repeat(lambda: forward(x))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, fused=compiled)
    loss_of = finish(lambda x, y: torch.nn.functional.cross_entropy(model(x), y))

    def step() -> None:
        optimizer.zero_grad()
        loss_of(x, y).backward()
        optimizer.step()

    return repeat(step)


# ---- JAX ---------------------------------------------------------------------------------------------------


def _jax(case: str, threads: int) -> float:
    """One jitted function per step, parameters and momentum donated."""
    if threads == 1 and hasattr(os, "sched_setaffinity"):  # XLA takes as many threads as it sees cores
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    jax = importlib.import_module("jax")
    jnp = importlib.import_module("jax.numpy")
    if case == "trivial compiled call":
        value, double = jnp.ones(4), jax.jit(lambda x: x + x)
        return repeat(lambda: double(value).block_until_ready())
    x, y = (jnp.asarray(array) for array in images(case))
    forward, parameters = _jax_model(jax, jnp, case)
    if "inference" in case:
        infer = jax.jit(forward)
        return repeat(lambda: infer(parameters, x).block_until_ready())

    def loss_of(parameters: Any) -> Any:
        scores = jax.nn.log_softmax(forward(parameters, x))
        return -jnp.take_along_axis(scores, y[:, None], 1).mean()

    def step(parameters: Any, momenta: Any) -> Any:
        loss, gradients = jax.value_and_grad(loss_of)(parameters)
        momenta = jax.tree.map(lambda m, g: 0.9 * m + g, momenta, gradients)
        return loss, jax.tree.map(lambda p, m: p - 0.01 * m, parameters, momenta), momenta

    run = jax.jit(step, donate_argnums=(0, 1))
    state = [parameters, jax.tree.map(jnp.zeros_like, parameters)]

    def repetition() -> None:
        loss, *state[:] = run(*state)
        loss.block_until_ready()

    return repeat(repetition)


def _jax_model(jax: Any, jnp: Any, case: str) -> tuple[Callable[[Any, Any], Any], Any]:
    """Forward function and parameters of LeNet or the MLP."""
    random = np.random.default_rng(0)

    def weight(*shape: int) -> Any:
        return jnp.asarray(random.uniform(-0.05, 0.05, shape).astype(np.float32))

    def linear(layers: Any, x: Any) -> Any:
        for position, (w, b) in enumerate(layers):
            x = x @ w.T + b
            x = jax.nn.relu(x) if position + 1 < len(layers) else x
        return x

    if case.startswith("mlp"):
        layers = [(weight(b, a), weight(b)) for a, b in pairwise(MLP)]
        return lambda p, x: linear(p, x.reshape(len(x), -1)), layers

    def block(x: Any, w: Any, b: Any, padding: int) -> Any:
        x = jax.lax.conv_general_dilated(x, w, (1, 1), [(padding, padding)] * 2) + b[:, None, None]
        window = (1, 1, 2, 2)
        return jax.lax.reduce_window(jax.nn.relu(x), -jnp.inf, jax.lax.max, window, window, "VALID")

    def lenet(p: Any, x: Any) -> Any:
        (w1, b1), (w2, b2) = p[:2]
        x = block(block(x, w1, b1, 2), w2, b2, 0)
        return linear(p[2:], x.reshape(len(x), -1))

    sizes = [(120, 400), (84, 120), (10, 84)]
    first = [(weight(6, 1, 5, 5), weight(6)), (weight(16, 6, 5, 5), weight(16))]
    return lenet, first + [(weight(*size), weight(size[0])) for size in sizes]


# ---- ONNX Runtime ------------------------------------------------------------------------------------------


def _onnxruntime(case: str, threads: int) -> float:
    """The network as an ONNX file, all graph optimisations on."""
    runtime = importlib.import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    x, _ = images(case)
    model = _onnx_model(case, x.shape)
    session = runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return repeat(lambda: session.run(None, {"x": x}))


def _onnx_model(case: str, shape: tuple[int, ...]) -> bytes:
    """LeNet or the MLP as ONNX."""
    onnx = importlib.import_module("onnx")
    helper, random = onnx.helper, np.random.default_rng(0)
    nodes: list[Any] = []
    weights: list[Any] = []

    def add(op: str, *shapes: tuple[int, ...], **attributes: Any) -> None:
        names = []
        for shape in shapes:
            names.append(f"w{len(weights)}")
            array = random.uniform(-0.05, 0.05, shape).astype(np.float32)
            weights.append(onnx.numpy_helper.from_array(array, names[-1]))
        source = f"v{len(nodes) - 1}" if nodes else "x"
        nodes.append(helper.make_node(op, [source, *names], [f"v{len(nodes)}"], **attributes))

    sizes: tuple[int, ...] = MLP
    if case.startswith("lenet"):
        sizes = (400, 120, 84, 10)
        for weight, padding in (((6, 1, 5, 5), 2), ((16, 6, 5, 5), 0)):
            add("Conv", weight, weight[:1], pads=[padding] * 4)
            add("Relu")
            add("MaxPool", kernel_shape=[2, 2], strides=[2, 2])
    add("Flatten")
    for a, b in pairwise(sizes):
        add("Gemm", (b, a), (b,), transB=1)
        if b != sizes[-1]:
            add("Relu")
    values = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, list(dims))
        for name, dims in (("x", shape), (nodes[-1].output[0], (shape[0], sizes[-1])))
    ]
    graph = helper.make_graph(nodes, "network", values[:1], values[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())
