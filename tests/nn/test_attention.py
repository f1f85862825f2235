"""Attention, positions and Transformer layers compute PyTorch's (and T5's) values and gradients."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest

import thalweg as tw
from thalweg import nn, optim
from thalweg.errors import ArgumentError, DTypeError, ShapeError
from thalweg.nn.functional import scaled_dot_product_attention
from thalweg.ops import attention as ops

Array = np.ndarray[Any, Any]

TOLERANCE = {"rtol": 1e-9, "atol": 1e-11}
LOOSE = {"rtol": 2e-4, "atol": 2e-5}


def drawn(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng([seed, *shape]).normal(size=shape)


def torch_module() -> Any:
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
    torch.manual_seed(4)
    return torch


# ---- the function ------------------------------------------------------------------------------------------

L, S, E, V = 7, 5, 3, 4
BOOL = drawn(L, S, seed=9) > 0
BOOL[2] = False  # a query that sees nothing

MASKS: dict[str, Any] = {
    "none": None,
    "bool": BOOL,
    "padding": np.array([[True] * S, [True] * 3 + [False] * 2]).reshape(2, 1, 1, S),
    "bias": drawn(4, L, S, seed=8),
    "per key": drawn(2, 4, 1, S, seed=7),
    "minus infinity": np.where(BOOL, 0, -math.inf),
}
FUNCTION_CASES = [
    (mask, causal, scale, grouped)
    for mask, causal, scale, grouped in product(MASKS, (False, True), (None, 0.7), (False, True))
]


def both(
    torch: Any, arrays: list[Array], ours: Callable[..., Any], theirs: Callable[..., Any], backend: str | None
) -> None:
    """Compare results and gradients by all floating arrays."""
    given = [torch.tensor(a, requires_grad=a.dtype.kind == "f") for a in arrays]
    expected = theirs(*given)
    cotangent = drawn(*expected.shape, seed=5)
    (expected * torch.tensor(cotangent)).sum().backward()
    inputs = [nn.Parameter(a) if a.dtype.kind == "f" else tw.tensor(a) for a in arrays]
    wrt = {index: x for index, x in enumerate(inputs) if isinstance(x, nn.Parameter)}

    def step() -> Any:
        result = ours(*inputs)
        return result, tw.gradient((result * cotangent).sum(), wrt=wrt)

    result, gradients = (step if backend is None else tw.compile(step, backend=backend))()
    np.testing.assert_allclose(result.numpy(), expected.detach().numpy(), **TOLERANCE)
    for index, found in gradients.items():
        np.testing.assert_allclose(found.numpy(), given[index].grad.numpy(), err_msg=str(index), **TOLERANCE)


@pytest.mark.parametrize(("mask", "causal", "scale", "grouped"), FUNCTION_CASES, ids=str)
def test_function_against_pytorch(mask: str, causal: bool, scale: float | None, grouped: bool) -> None:
    torch = torch_module()
    chosen = MASKS[mask]
    if causal and chosen is not None:  # PyTorch takes one of the two, we both: the same as one mask
        below = np.tril(np.ones((L, S), bool))
        combined = chosen & below if chosen.dtype == bool else np.where(below, chosen, -math.inf)
    heads = 2 if grouped else 4
    arrays = [drawn(2, 4, L, E, seed=1), drawn(2, heads, S, E, seed=2), drawn(2, heads, S, V, seed=3)]
    if chosen is not None:
        arrays.append(chosen)
    options = {"scale": scale, "enable_gqa": grouped}

    def theirs(q: Any, k: Any, v: Any, m: Any = None) -> Any:
        if causal and m is not None:
            hidden = torch.tensor(np.triu(np.ones((L, S), bool), 1))
            m = m & ~hidden if m.dtype == torch.bool else m.masked_fill(hidden, -math.inf)
            assert np.array_equal(m.detach().numpy(), np.broadcast_to(combined, m.shape))
            return torch.nn.functional.scaled_dot_product_attention(q, k, v, m, **options)
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, m, is_causal=causal, **options)

    def ours(q: Any, k: Any, v: Any, m: Any = None) -> Any:
        return scaled_dot_product_attention(q, k, v, m, 0.0, causal, **options)

    backend = None if FUNCTION_CASES.index((mask, causal, scale, grouped)) % 3 else "numpy"
    both(torch, arrays, ours, theirs, backend)


@pytest.mark.parametrize("mask", MASKS)
def test_blocks_of_queries_are_the_same(mask: str, needs_compiler: None) -> None:
    """With and without the loop over queries, also where the last block is not full; in C."""
    arrays = [drawn(2, 4, L, E, seed=1), drawn(2, 2, S, E, seed=2), drawn(2, 2, S, V, seed=3)]
    chosen = MASKS[mask]
    arrays += [] if chosen is None else [chosen]
    cotangent = drawn(2, 4, L, V)

    inputs = [nn.Parameter(a) if a.dtype.kind == "f" else tw.tensor(a) for a in arrays]
    wrt = [x for x in inputs if isinstance(x, nn.Parameter)]

    def step() -> Any:
        found = []
        for block in (0, 3):
            result = ops.scaled_dot_product_attention(*inputs, is_causal=True, enable_gqa=True, block=block)
            found.append([result, *tw.gradient((result * cotangent).sum(), wrt=wrt)])
        return found

    whole, blocks = tw.compile(step, backend="c")()
    assert len(whole) == (5 if mask in ("bias", "per key", "minus infinity") else 4)
    for one, other in zip(whole, blocks, strict=True):
        np.testing.assert_allclose(other.numpy(), one.numpy(), rtol=1e-11, atol=1e-13)


def test_only_one_number_per_query_is_kept() -> None:
    """Between forward and backward pass, and for long sequences nothing anywhere, has queries times keys
    elements.
    """

    def largest(length: int) -> int:
        def step(q: Any, k: Any, v: Any) -> Any:
            return tw.grad(lambda q: scaled_dot_product_attention(q, k, v, is_causal=True).sum())(q)

        graph = tw.compile(step, backend="c").plan(*(tw.spec((1, 2, length, 8)) for _ in range(3)))
        return int(graph.arena_bytes)

    short, long = largest(1024), largest(4096)
    assert long < 5 * short


def test_dropout_of_weights() -> None:
    q = np.ones((1, 2, 64, 4), np.float32)
    v = np.eye(64, dtype=np.float32)[None, None].repeat(2, 1)
    generator = tw.Generator(3)
    weights = scaled_dot_product_attention(q, q, v, None, 0.25, generator=generator).numpy()
    assert set(np.unique(weights * 64).round(4)) == {0.0, np.float32(1 / 0.75).round(4)}
    assert abs((weights == 0).mean() - 0.25) < 0.02
    assert (weights[:, 0] != weights[:, 1]).any()
    parameter = nn.Parameter(v)
    generator.manual_seed(3)
    result = scaled_dot_product_attention(q, q, parameter, None, 0.25, generator=generator)
    slope = tw.gradient(result.sum(), wrt=parameter).numpy()[..., 0]
    np.testing.assert_allclose(
        slope, weights.sum(2), rtol=1e-5
    )  # the same weights are dropped in the gradient


def test_half_precision_is_computed_in_float32() -> None:
    arrays = [tw.tensor(drawn(2, 9, 16, seed=i), dtype="bfloat16") for i in range(3)]
    exact = scaled_dot_product_attention(*(x.astype("float32") for x in arrays)).numpy()
    found = scaled_dot_product_attention(*arrays)
    assert found.dtype is tw.bfloat16
    np.testing.assert_array_equal(
        found.astype("float32").numpy(), tw.tensor(exact).astype("bfloat16").astype("float32").numpy()
    )


# ---- multi-head attention ----------------------------------------------------------------------------------

B, D, HEADS = 2, 6, 2

ATTENTION_OPTIONS: list[dict[str, Any]] = [
    {},
    {"batch_first": True},
    {"bias": False},
    {"kdim": 5, "vdim": 3},
    {"kdim": 5, "vdim": 3, "bias": False, "batch_first": True},
    {"add_bias_kv": True},
    {"add_zero_attn": True},
    {"add_bias_kv": True, "add_zero_attn": True, "batch_first": True},
]
ATTENTION_MASKS: dict[str, dict[str, Array]] = {
    "none": {},
    "padding": {"key_padding_mask": np.array([[False] * S, [False, True, False, True, True]])},
    "attention": {"attn_mask": np.triu(np.ones((L, S), bool), 2)},
    "heads": {"attn_mask": drawn(B * HEADS, L, S) > 0.5},
    "numbers": {"attn_mask": drawn(L, S, seed=1), "key_padding_mask": drawn(B, S, seed=2)},
    "both": {
        "attn_mask": np.triu(np.ones((L, S), bool), 3),
        "key_padding_mask": np.array([[False] * S, [False, False, False, True, True]]),
    },
}


def twins(torch: Any, name: str, *arguments: Any, **options: Any) -> tuple[Any, Any]:
    """Our layer and PyTorch's, with the same weights drawn at random (biases too)."""
    theirs = getattr(torch.nn, name)(*arguments, **options).double()
    for parameter in theirs.parameters():
        torch.nn.init.uniform_(parameter, -0.6, 0.6)
    ours = getattr(nn, name)(*arguments, **options).to("float64")
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def compare_modules(
    torch: Any,
    ours: Any,
    theirs: Any,
    arrays: list[Array],
    options: dict[str, Any],
    backend: str | None,
    pick: Callable[[Any], list[Any]],
    tolerance: dict[str, float],
) -> None:
    """Results, and gradients by the arrays and by all parameters."""
    as_torch = {k: torch.tensor(v) if isinstance(v, np.ndarray) else v for k, v in options.items()}
    given = [torch.tensor(a, requires_grad=True) for a in arrays]
    expected = pick(theirs(*given, **as_torch))
    cotangents = [drawn(*one.shape, seed=6) for one in expected]
    theirs.zero_grad()
    sum((r * torch.tensor(g)).sum() for r, g in zip(expected, cotangents, strict=True)).backward()
    dtype = next(ours.parameters()).dtype
    inputs = [nn.Parameter(a.astype(dtype.numpy)) for a in arrays]

    def cast(value: Any) -> Any:
        is_number = isinstance(value, np.ndarray) and value.dtype.kind == "f"
        return (
            tw.tensor(value.astype(dtype.numpy) if is_number else value)
            if isinstance(value, np.ndarray)
            else value
        )

    def step() -> Any:
        results = pick(ours(*inputs, **{k: cast(v) for k, v in options.items()}))
        weights = [tw.tensor(g.astype(dtype.numpy)) for g in cotangents]
        loss = sum((r * g).sum() for r, g in zip(results, weights, strict=True))
        wrt = {str(index): x for index, x in enumerate(inputs)} | dict(ours.named_parameters())
        return results, tw.gradient(loss, wrt=wrt)

    results, gradients = (step if backend is None else tw.compile(step, backend=backend))()
    for one, other in zip(results, expected, strict=True):
        np.testing.assert_allclose(one.numpy(), other.detach().numpy(), **tolerance)
    for index, x in enumerate(given):
        np.testing.assert_allclose(
            gradients[str(index)].numpy(), x.grad.numpy(), err_msg=f"input {index}", **tolerance
        )
    for name, parameter in theirs.named_parameters():
        np.testing.assert_allclose(gradients[name].numpy(), parameter.grad.numpy(), err_msg=name, **tolerance)


def pick_attention(result: Any) -> list[Any]:
    return [one for one in result if one is not None]


def attention_inputs(given: dict[str, Any]) -> list[Array]:
    shapes = [(L, B, D), (S, B, given.get("kdim", D)), (S, B, given.get("vdim", D))]
    arrays = [drawn(*shape, seed=index) for index, shape in enumerate(shapes)]
    return [a.swapaxes(0, 1).copy() for a in arrays] if given.get("batch_first") else arrays


@pytest.mark.parametrize("given", ATTENTION_OPTIONS, ids=str)
@pytest.mark.parametrize("mask", ATTENTION_MASKS)
def test_multihead_attention(given: dict[str, Any], mask: str) -> None:
    torch = torch_module()
    number = ATTENTION_OPTIONS.index(given) + list(ATTENTION_MASKS).index(mask)
    options = {
        **ATTENTION_MASKS[mask],
        "need_weights": number % 3 != 0,
        "average_attn_weights": number % 2 == 0,
    }
    ours, theirs = twins(torch, "MultiheadAttention", D, HEADS, **given)
    backend = None if number % 2 else "numpy"
    compare_modules(torch, ours, theirs, attention_inputs(given), options, backend, pick_attention, TOLERANCE)


def test_multihead_attention_in_c(needs_compiler: None) -> None:
    torch = torch_module()
    ours, theirs = twins(torch, "MultiheadAttention", D, HEADS, batch_first=True)
    options = {**ATTENTION_MASKS["both"], "need_weights": False}
    compare_modules(
        torch,
        ours.to("float32"),
        theirs,
        attention_inputs({"batch_first": True}),
        options,
        "c",
        pick_attention,
        LOOSE,
    )


def test_self_attention_is_one_projection() -> None:
    layer = nn.MultiheadAttention(D, HEADS)
    graph = tw.compile(lambda x: layer(x, x, x)[0], backend="numpy").graph(tw.spec((L, B, D)))
    assert [node.op.name for node in graph.nodes].count("linear") == 2
    graph = tw.compile(lambda x, y: layer(x, y, y)[0], backend="numpy").graph(*(tw.spec((L, B, D)),) * 2)
    assert [node.op.name for node in graph.nodes].count("linear") == 3


@pytest.mark.parametrize("added", [False, True])
def test_causal_attention_and_no_batch(added: bool) -> None:
    torch = torch_module()
    ours, theirs = twins(torch, "MultiheadAttention", D, HEADS, add_zero_attn=added)
    x = drawn(L, D)
    above = torch.tensor(np.triu(np.ones((L, L), bool), 1))
    t = torch.tensor(x)
    expected, weights = theirs(t, t, t, attn_mask=above)
    for need in (True, False):
        found, found_weights = ours(x, x, x, need_weights=need, is_causal=True)
        np.testing.assert_allclose(found.numpy(), expected.detach().numpy(), **TOLERANCE)
        assert (found_weights is None) is not need
        if need:
            np.testing.assert_allclose(found_weights.numpy(), weights.detach().numpy(), **TOLERANCE)


def test_initial_weights_of_attention() -> None:
    layer = nn.MultiheadAttention(64, 4, add_bias_kv=True)
    bound = math.sqrt(6 / (64 + 192))
    assert 0.95 * bound < abs(layer.in_proj_weight.numpy()).max() <= bound
    assert abs(layer.out_proj.weight.numpy()).max() <= 1 / 8
    assert not layer.in_proj_bias.numpy().any()
    assert not layer.out_proj.bias.numpy().any()
    assert 0.05 < layer.bias_k.numpy().std() < 0.3


# ---- positions ---------------------------------------------------------------------------------------------


def test_rotary_layer_turns_the_first_part() -> None:
    x = drawn(2, 5, 10).astype(np.float32)
    found = nn.RotaryEmbedding(4)(x).numpy()
    np.testing.assert_array_equal(found[..., 4:], x[..., 4:])
    np.testing.assert_allclose(found[..., :4], ops.rotary_embedding(tw.tensor(x[..., :4])).numpy())
    np.testing.assert_allclose(found[:, 0], x[:, 0])
    # scores depend on the distance only
    q, k = drawn(1, 8), drawn(1, 8, seed=1)
    layer = nn.RotaryEmbedding(8, interleaved=True)
    scores = [
        float((layer(tw.tensor(q), tw.tensor([a])) * layer(tw.tensor(k), tw.tensor([b]))).sum())
        for a, b in ((5, 3), (105, 103))
    ]
    assert scores[0] == pytest.approx(scores[1], rel=1e-9)


def test_sinusoidal_positions() -> None:
    x = np.zeros((2, 6, 8))
    found = nn.SinusoidalPositions(8)(x).numpy()
    for position, pair in product(range(6), range(4)):
        angle = position / 10000 ** (2 * pair / 8)
        np.testing.assert_allclose(
            found[1, position, 2 * pair : 2 * pair + 2], [math.sin(angle), math.cos(angle)], atol=1e-12
        )
    shifted = nn.SinusoidalPositions(8)(x[:, :2], tw.tensor([3, 1])).numpy()
    np.testing.assert_allclose(shifted[0], found[0, [3, 1]])


def test_learned_positions() -> None:
    layer = nn.LearnedPositions(9, 4)
    x = drawn(2, 6, 4).astype(np.float32)
    table = layer.weight.numpy()
    np.testing.assert_array_equal(layer(x).numpy(), x + table[:6])
    np.testing.assert_array_equal(layer(x[:, :2], tw.tensor([8, 0])).numpy(), x[:, :2] + table[[8, 0]])
    slope = tw.gradient(layer(x).sum(), wrt=layer.weight).numpy()
    np.testing.assert_array_equal(slope[:, 0], [2] * 6 + [0] * 3)


def t5_bucket(relative: int, bidirectional: bool, count: int, limit: int) -> int:
    """The definition of Raffel et al. (2020), for one distance."""
    base = 0
    if bidirectional:
        count //= 2
        base = count if relative > 0 else 0
        distance = abs(relative)
    else:
        distance = max(-relative, 0)
    exact = count // 2
    if distance < exact:
        return base + distance
    far = exact + int(
        np.float32(np.log(np.float32(distance / exact))) / math.log(limit / exact) * (count - exact)
    )
    return base + min(far, count - 1)


@pytest.mark.parametrize(
    ("bidirectional", "count", "limit"), [(True, 32, 128), (False, 32, 128), (True, 8, 20), (False, 5, 7)]
)
def test_relative_position_bias(bidirectional: bool, count: int, limit: int) -> None:
    layer = nn.RelativePositionBias(3, count, limit, bidirectional)
    bias = layer(200, 170).numpy()
    assert bias.shape == (3, 200, 170)
    weight = layer.relative_attention_bias.weight.numpy()
    for query, key in (
        (0, 0),
        (199, 0),
        (0, 169),
        (60, 50),
        (50, 61),
        (3, 150),
        (100, 37),
        (7, 0),
        (140, 12),
    ):
        row = t5_bucket(key - query, bidirectional, count, limit)
        np.testing.assert_array_equal(bias[:, query, key], weight[row], err_msg=f"{query} {key}")
    one = layer(tw.tensor([120]), 121).numpy()
    np.testing.assert_array_equal(one[:, 0], bias[:, 120, :121])
    slope = tw.gradient(layer(6).sum(), wrt=layer.relative_attention_bias.weight).numpy()
    assert slope.sum() == 3 * 36


# ---- Transformer layers ------------------------------------------------------------------------------------

LAYER_OPTIONS: list[dict[str, Any]] = [
    {"norm_first": first, "batch_first": batch, "activation": activation, "bias": bias}
    for first, batch, activation, bias in product(
        (False, True), (False, True), ("relu", "gelu"), (True, False)
    )
]


def sequences(given: dict[str, Any], *lengths: int) -> list[Array]:
    arrays = [drawn(length, B, D, seed=index) for index, length in enumerate(lengths)]
    return [a.swapaxes(0, 1).copy() for a in arrays] if given.get("batch_first") else arrays


@pytest.mark.parametrize("given", LAYER_OPTIONS, ids=str)
def test_transformer_layers(given: dict[str, Any]) -> None:
    torch = torch_module()
    backend = None if LAYER_OPTIONS.index(given) % 3 else "numpy"
    ours, theirs = twins(torch, "TransformerEncoderLayer", D, HEADS, 5, 0.0, **given)
    masks = {"src_mask": np.triu(np.ones((S, S), bool), 2), **ATTENTION_MASKS["padding"]}
    masks["src_key_padding_mask"] = masks.pop("key_padding_mask")
    compare_modules(torch, ours, theirs, sequences(given, S), masks, backend, lambda r: [r], TOLERANCE)
    ours, theirs = twins(torch, "TransformerDecoderLayer", D, HEADS, 5, 0.0, **given)
    masks = {
        "tgt_mask": np.triu(np.full((L, L), -math.inf), 1),
        # as numbers: PyTorch wants one type for both masks of an attention
        "memory_key_padding_mask": np.where(ATTENTION_MASKS["padding"]["key_padding_mask"], -math.inf, 0.0),
        "memory_mask": drawn(L, S),
    }
    compare_modules(torch, ours, theirs, sequences(given, L, S), masks, backend, lambda r: [r], TOLERANCE)


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
@pytest.mark.parametrize("backend", [None, "c"])
def test_transformer(backend: str | None, request: pytest.FixtureRequest) -> None:
    torch = torch_module()
    if backend == "c":
        request.getfixturevalue("needs_compiler")
    ours, theirs = twins(torch, "Transformer", D, HEADS, 2, 2, 7, 0.0, norm_first=backend is None)
    options = {
        "tgt_mask": torch.nn.Transformer.generate_square_subsequent_mask(L).double().numpy(),
        "src_key_padding_mask": ATTENTION_MASKS["padding"]["key_padding_mask"],
    }
    np.testing.assert_array_equal(
        nn.Transformer.generate_square_subsequent_mask(L).numpy(), options["tgt_mask"]
    )
    tolerance = TOLERANCE if backend is None else LOOSE
    if backend == "c":
        ours = ours.to("float32")
    compare_modules(torch, ours, theirs, sequences({}, S, L), options, backend, lambda r: [r], tolerance)
    causal = ours(*sequences({}, S, L), tgt_is_causal=True).numpy()
    masked = ours(*sequences({}, S, L), tgt_mask=options["tgt_mask"]).numpy()
    np.testing.assert_allclose(causal, masked, **LOOSE)


def test_stacks_share_generators_and_nothing_else() -> None:
    generator = tw.Generator(1)
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(D, HEADS, 5, 0.5, generator=generator), 2)
    first, second = encoder.layers
    assert first.linear1.weight is not second.linear1.weight
    np.testing.assert_array_equal(first.linear1.weight.numpy(), second.linear1.weight.numpy())
    assert first.dropout.generator is second.dropout.generator is second.self_attn.generator is generator
    x = drawn(S, B, D).astype(np.float32)
    assert (encoder(x).numpy() != encoder(x).numpy()).any()
    encoder.eval()
    np.testing.assert_array_equal(encoder(x).numpy(), encoder(x).numpy())
    assert len(list(copy.deepcopy(encoder).parameters())) == 24


def test_a_transformer_trains_compiled() -> None:
    """Reversing sequences of digits is learnt; evaluation of the same weights has no dropout."""
    random = np.random.default_rng(0)
    embed, head = nn.Embedding(5, 16), nn.Linear(16, 5)
    layer = nn.TransformerEncoderLayer(16, 2, 32, 0.0, batch_first=True, norm_first=True)
    positions = nn.LearnedPositions(6, 16, std=1.0)
    model = nn.Sequential(embed, positions, layer, head)
    optimizer = optim.Adam(model.parameters(), lr=1e-2)

    @tw.compile(backend="numpy")
    def step(x: Any, y: Any) -> Any:
        loss = nn.functional.cross_entropy(model(x).reshape(-1, 5), y.reshape(-1))
        optimizer.minimize(loss)
        return loss

    losses = []
    for _ in range(80):
        x = random.integers(0, 5, (16, 6))
        losses.append(float(step(x, x[:, ::-1].copy())))
    assert losses[0] > 1.4
    assert losses[-1] < 0.4


# ---- bad input ---------------------------------------------------------------------------------------------


class Block(nn.Module):
    def __init__(self) -> None:
        self.attn = nn.MultiheadAttention(D, HEADS)
        self.layer = nn.TransformerDecoderLayer(D, HEADS, 5)
        self.rope = nn.RotaryEmbedding(4)
        self.places = nn.LearnedPositions(3, D)
        self.transformer = nn.Transformer(D, HEADS, 1, 1, 5)

    def forward(self, call: Callable[[Any], Any]) -> Any:
        return call(self)


Q, K = np.ones((L, B, D), np.float32), np.ones((S, B, D), np.float32)
MANY = np.ones((3, 3, 3), bool)

BAD: list[tuple[Callable[[Any], Any], type[Exception], str]] = [
    (
        lambda m: m.attn(Q, K, K, attn_mask=MANY[0]),
        ShapeError,
        r"Block\.attn: attn_mask must be .*\(7, 5\).*\(3, 3\)",
    ),
    (lambda m: m.attn(Q, K, K, MANY[0]), ShapeError, r"Block\.attn: key_padding_mask must be .*\(2, 5\)"),
    (lambda m: m.attn(Q, K, K, np.ones((B, S), np.int64)), DTypeError, "write mask != 0"),
    (
        lambda m: m.attn(Q, K[..., :2], K),
        ShapeError,
        r"Block\.attn: MultiheadAttention\(6, 2\) needs 6, 6 and 6",
    ),
    (lambda m: m.attn(Q, K, K[1:]), ShapeError, r"Block\.attn.*one length"),
    (lambda m: m.attn(Q, K[:, :1], K), ShapeError, r"Block\.attn.*one batch size"),
    (lambda m: m.attn(Q, K[0], K[0]), ShapeError, r"\[length, batch, features\]"),
    (lambda m: m.layer(Q, K[..., 1:]), ShapeError, r"Block\.layer: TransformerDecoderLayer needs memory"),
    (lambda m: m.transformer(Q, K[:, :1]), ShapeError, r"Block\.transformer: .*one batch size"),
    (lambda m: m.rope(Q[..., :2]), ShapeError, r"Block\.rope: RotaryEmbedding\(4\)"),
    (lambda m: m.places(K[:, :1].swapaxes(0, 1)), ShapeError, "3 positions, received a sequence of 5"),
    (
        lambda m: scaled_dot_product_attention(Q, Q, Q, MANY),
        ShapeError,
        r"must broadcast to the scores \[\.\., queries, keys\] = \(7, 2, 2\), received shape \(3, 3, 3\)",
    ),
    (
        lambda m: scaled_dot_product_attention(K, K, K[:, :1]),
        ShapeError,
        r"^Block: attention needs as many values",
    ),
    (lambda m: m.rope(Q[..., :4], [1, 2, 3]), ShapeError, r"^Block\.rope: positions must broadcast"),
    (lambda m: nn.MultiheadAttention(6, 4), ArgumentError, "must divide"),
    (lambda m: nn.MultiheadAttention(6, 2, 1.5), ArgumentError, "probability"),
    (lambda m: nn.TransformerEncoderLayer(6, 2, activation="swish"), ArgumentError, "activation"),
    (lambda m: nn.RotaryEmbedding(3), ArgumentError, "even"),
    (lambda m: nn.RelativePositionBias(2, 32, 8), ArgumentError, "max_distance"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD, ids=[str(n) for n in range(len(BAD))])
def test_bad_input(call: Callable[[Any], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Block()(call)
