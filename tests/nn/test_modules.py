"""`Module`: finding its parts, names, modes, state, copies, structure inside traces, looking inside."""

from __future__ import annotations

import copy
import pickle
import threading
from typing import Any

import numpy as np
import pytest

import thalweg as tw
from thalweg import nn
from thalweg.errors import ArgumentError, DataError, ShapeError, TraceError


class Nested(nn.Module):
    """Parts in every kind of place; no call of super().__init__()."""

    def __init__(self) -> None:
        self.head = nn.Linear(3, 2)
        self.layers = [nn.Linear(3, 3), (nn.ReLU(), nn.Linear(3, 3, bias=False))]
        self.named = {"norm": nn.BatchNorm1d(3)}
        self.scale = nn.Parameter(np.ones(3, np.float32))
        self.count = nn.Buffer(np.zeros((), np.int64))
        self.nothing = None

    def forward(self, x: Any) -> Any:
        x = self.layers[0](x)
        for layer in self.layers[1]:
            x = layer(x)
        return self.head(self.named["norm"](x) * self.scale)


class Tied(nn.Module):
    def __init__(self) -> None:
        self.encode = nn.Linear(4, 4, bias=False)
        self.decode = nn.Linear(4, 4, bias=False)
        self.decode.weight = self.encode.weight

    def forward(self, x: Any) -> Any:
        return self.decode(self.encode(x))


X = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)

# ---- finding the parts -------------------------------------------------------------------------------------


def test_parts_are_found_in_attributes_and_containers() -> None:
    model = Nested()
    assert [name for name, _ in model.named_parameters()] == [
        "scale",
        "head.weight",
        "head.bias",
        "layers.0.weight",
        "layers.0.bias",
        "layers.1.1.weight",
        "named.norm.weight",
        "named.norm.bias",
    ]
    assert [name for name, _ in model.named_buffers()] == [
        "count",
        "named.norm.running_mean",
        "named.norm.running_var",
        "named.norm.num_batches_tracked",
    ]
    assert [name for name, _ in model.named_modules()] == [
        "",
        "head",
        "layers.0",
        "layers.1.0",
        "layers.1.1",
        "named.norm",
    ]
    assert [name for name, _ in model.named_children()] == [
        "head",
        "layers.0",
        "layers.1.0",
        "layers.1.1",
        "named.norm",
    ]
    assert len(list(model.children())) == 5
    assert next(iter(model.parameters())) is model.scale
    assert next(iter(model.modules())) is model


def test_parts_added_later_are_found() -> None:
    model = Nested()
    model.extra = nn.Linear(2, 2)
    model.layers.append(nn.Linear(5, 5))
    names = [name for name, _ in model.named_parameters()]
    assert "extra.weight" in names
    assert "layers.2.weight" in names
    del model.extra
    assert "extra.weight" not in [name for name, _ in model.named_parameters()]


def test_a_child_may_refer_to_its_parent() -> None:
    model = nn.Sequential(nn.Linear(3, 3))
    model[0].parent = model
    assert [name for name, _ in model.named_parameters()] == ["0.weight", "0.bias"]
    assert model(X).shape == (4, 3)


def test_tied_weights_are_one_parameter_with_two_names() -> None:
    model = Tied()
    assert [name for name, _ in model.named_parameters()] == ["encode.weight"]
    assert [n for n, _ in model.named_parameters(remove_duplicate=False)] == [
        "encode.weight",
        "decode.weight",
    ]
    assert list(model.state_dict()) == ["encode.weight", "decode.weight"]
    x = np.random.default_rng(1).normal(size=(2, 4)).astype(np.float32)
    loss = (model(x) ** 2).sum()
    gradients = tw.gradient(loss, wrt=model)
    w = model.encode.weight.numpy().astype(np.float64)
    h = x @ w.T
    g = 2 * (h @ w.T)
    np.testing.assert_allclose(
        gradients["encode.weight"].numpy(), g.T @ h + (g @ w).T @ x, rtol=1e-4, atol=1e-5
    )


def test_one_module_in_two_places_is_one() -> None:
    shared = nn.Linear(3, 3)
    model = nn.Sequential(shared, nn.ReLU(), shared)
    assert [name for name, _ in model.named_parameters()] == ["0.weight", "0.bias"]
    assert list(model.state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias"]


def test_holders_are_labelled_with_their_longest_path() -> None:
    model = nn.Sequential(nn.Linear(3, 2))
    list(model[0].parameters())
    assert model[0].weight.name == "Linear.weight"
    list(model.parameters())
    assert model[0].weight.name == "Sequential.0.weight"


# ---- assignment --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [lambda w: w * 2, lambda w: w.numpy(), lambda w: 0.0])
def test_a_value_does_not_replace_a_parameter(make: Any) -> None:
    layer = nn.Linear(2, 2)
    weight = layer.weight
    with pytest.raises(ArgumentError, match=r"self\.weight\.assign\(value\)"):
        layer.weight = make(weight)
    assert layer.weight is weight
    layer.bias = None  # a layer without bias
    assert list(layer.state_dict()) == ["weight"]
    assert layer(np.ones((1, 2), np.float32)).shape == (1, 2)


def test_assigning_a_tensor_to_a_buffer_sets_its_value() -> None:
    model = Nested()
    buffer = model.count
    model.count = model.count + 1
    assert model.count is buffer
    assert model.count.item() == 1
    model.count = 7
    assert (model.count is buffer, model.count.item()) == (True, 7)
    model.count = np.int64(1)

    @tw.compile(backend="numpy")
    def step() -> Any:
        model.count = model.count + 2
        return model.count * 10

    assert step().item() == 30
    assert step().item() == 50
    assert buffer.item() == 5


@pytest.mark.parametrize(
    "change",
    [
        lambda model: setattr(model, "extra", nn.Parameter(np.zeros(2, np.float32))),
        lambda model: setattr(model, "head", nn.Identity()),
        lambda model: setattr(model, "layers", []),
        lambda model: delattr(model, "head"),
        lambda model: nn.Linear(2, 2),
        lambda model: model.named["norm"].load_state_dict({}),
        lambda model: model.to("float64"),
        lambda model: nn.init.zeros_(model.head.weight),
        lambda model: nn.init.normal_(model.head.weight),
    ],
)
def test_the_structure_stays_inside_a_trace(change: Any) -> None:
    model = Nested()
    before = model.state_dict()

    def step(x: Any) -> Any:
        change(model)
        return model(x)

    with pytest.raises(TraceError, match=r"inside a compiled function"):
        tw.compile(step, backend="numpy")(X)
    after = model.state_dict()
    assert list(before) == list(after)
    for name, value in before.items():
        np.testing.assert_array_equal(value, after[name])


def test_containers_keep_their_structure_inside_a_trace() -> None:
    layers = nn.ModuleList([nn.Linear(3, 3)])

    def step(x: Any) -> Any:
        layers.append(nn.Identity())
        return layers[0](x)

    with pytest.raises(TraceError):
        tw.compile(step, backend="numpy")(X)
    assert len(layers) == 1


def test_plain_attributes_may_change_and_are_guarded() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            self.factor = 2.0

        def forward(self, x: Any) -> Any:
            return x * self.factor

    model = Scaled()
    compiled = tw.compile(model, backend="numpy")
    np.testing.assert_array_equal(compiled(X).numpy(), X * 2)
    model.factor = 3.0
    np.testing.assert_array_equal(compiled(X).numpy(), X * 3)


@pytest.mark.parametrize(
    ("name", "words"),
    [("register_buffer", "nn.Buffer"), ("zero_grad", "minimize"), ("cuda", "compiled"), ("half", "float16")],
)
def test_names_of_other_frameworks_are_explained(name: str, words: str) -> None:
    with pytest.raises(AttributeError, match=words):
        getattr(nn.ReLU(), name)


def test_an_unknown_attribute_is_an_ordinary_error() -> None:
    with pytest.raises(AttributeError, match=r"'ReLU' object has no attribute 'wieght'$"):
        nn.ReLU().wieght  # noqa: B018
    assert not hasattr(nn.ReLU(), "wieght")


def test_forward_must_be_defined() -> None:
    class Empty(nn.Module):
        pass

    with pytest.raises(NotImplementedError, match="Empty has no forward"):
        Empty()(X)


# ---- modes -------------------------------------------------------------------------------------------------


def test_train_and_eval_reach_everything() -> None:
    model = Nested()
    assert all(module.training for module in model.modules())
    assert model.eval() is model
    assert not any(module.training for module in model.modules())
    assert all(module.training for module in model.train().modules())
    with pytest.raises(ArgumentError):
        model.train("yes")  # type: ignore[arg-type]


def test_eval_after_a_compiled_call_takes_effect() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5, generator=tw.Generator(0)))
    compiled = tw.compile(model, backend="numpy")
    assert (compiled(X).numpy() == 0).any()
    model.eval()
    first = compiled(X).numpy()
    np.testing.assert_array_equal(first, compiled(X).numpy())
    tracked = model.state_dict()["0.num_batches_tracked"]
    np.testing.assert_allclose(first, model(X).numpy(), rtol=1e-6)
    assert tracked == 1
    model.train()
    assert (compiled(X).numpy() == 0).any()
    assert model.state_dict()["0.num_batches_tracked"] == 2


def test_freezing() -> None:
    model = Nested().requires_grad_(False)
    assert not any(parameter.trainable for parameter in model.parameters())
    model.head.requires_grad_()
    assert list(tw.gradient(model(X).sum(), wrt=model)) == ["head.weight", "head.bias"]


def test_apply_visits_children_first() -> None:
    seen: list[nn.Module] = []
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.ReLU()))
    assert model.apply(seen.append) is model
    assert seen.index(model) == len(seen) - 1
    assert seen.index(model[1]) > seen.index(model[1][0])
    assert len(seen) == 4


def test_conversion_to_another_dtype() -> None:
    model = Nested()
    weight = model.head.weight
    assert model(X).dtype is tw.float32
    compiled = tw.compile(model, backend="numpy")
    compiled(X)
    assert model.to("float64") is model
    assert model.head.weight is weight
    assert {p.dtype for p in model.parameters()} == {tw.float64}
    assert model.count.dtype is tw.int64
    assert compiled(X).dtype is tw.float64
    assert model.to(tw.bfloat16).head.weight.numpy().dtype.name == "bfloat16"
    with pytest.raises(ArgumentError, match="floating-point"):
        model.to("int32")


# ---- state -------------------------------------------------------------------------------------------------


def test_state_is_a_copy() -> None:
    layer = nn.Linear(2, 2)
    state = layer.state_dict()
    before = layer.weight.numpy()
    state["weight"][:] = 7
    np.testing.assert_array_equal(layer.weight.numpy(), before)
    layer.weight.assign(np.ones((2, 2), np.float32))
    assert (state["weight"] == 7).all()


def test_state_round_trip_between_models_and_files(tmp_path: Any) -> None:
    model, other, third = Nested(), Nested(), Nested()
    model(X)  # moves the running statistics
    other.load_state_dict(model.state_dict())
    model.save(tmp_path / "model.safetensors")
    third.load(tmp_path / "model.safetensors")
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(other.state_dict()[name], value, err_msg=name)
        np.testing.assert_array_equal(third.state_dict()[name], value, err_msg=name)


def test_a_tied_weight_is_saved_once_and_loaded_by_one_name(tmp_path: Any) -> None:
    from thalweg.io import safetensors

    model, other = Tied(), Tied()
    model.save(tmp_path / "tied.safetensors")
    assert list(safetensors.load(tmp_path / "tied.safetensors")[0]) == ["encode.weight"]
    other.load(tmp_path / "tied.safetensors")
    np.testing.assert_array_equal(other.decode.weight.numpy(), model.encode.weight.numpy())
    other.load_state_dict({"decode.weight": np.ones((4, 4), np.float32)})
    assert (other.encode.weight.numpy() == 1).all()
    with pytest.raises(ArgumentError, match="different values for one parameter"):
        other.load_state_dict({"encode.weight": np.zeros((4, 4)), "decode.weight": np.ones((4, 4))})


def test_strict_loading_lists_everything_and_loads_nothing() -> None:
    model = Nested()
    before = model.state_dict()
    state = {name: value + 1 for name, value in before.items()}
    del state["head.bias"], state["layers.0.weight"]
    state["head.weight"] = np.zeros((3, 2))
    state["count"] = np.float32(1.5)
    state["other"] = np.zeros(1)
    with pytest.raises(ArgumentError) as caught:
        model.load_state_dict(state)
    message = str(caught.value)
    for words in (
        "Nested; nothing was loaded",
        "missing (2)",
        "head.bias: f32[2]",
        "layers.0.weight: f32[3,3]",
        "unexpected (1)",
        "other",
        "misshapen (2)",
        "head.weight: expected shape (2, 3), received (3, 2)",
        "count: expected int64, received float32",
        "strict=False",
    ):
        assert words in message
    for name, value in before.items():
        np.testing.assert_array_equal(model.state_dict()[name], value)


def test_loading_that_is_not_strict_takes_what_fits() -> None:
    model = Nested()
    bias = model.state_dict()["head.bias"]
    model.load_state_dict({"head.weight": np.ones((2, 3)), "other": np.zeros(1)}, strict=False)
    assert (model.head.weight.numpy() == 1).all()
    np.testing.assert_array_equal(model.head.bias.numpy(), bias)
    with pytest.raises(ArgumentError, match="misshapen"):
        model.load_state_dict({"head.weight": np.ones((3, 2))}, strict=False)


@pytest.mark.parametrize("given", [["weight"], "weight", None, {"weight": "text", "bias": np.zeros(2)}])
def test_loading_what_is_no_state(given: Any) -> None:
    with pytest.raises(ArgumentError):
        nn.Linear(3, 2).load_state_dict(given)


def test_values_take_the_dtype_of_the_model() -> None:
    layer = nn.Linear(2, 2)
    layer.load_state_dict({"weight": np.ones((2, 2), np.int32), "bias": np.ones(2, np.float64)})
    assert layer.weight.dtype is tw.float32
    assert layer.bias.numpy().tolist() == [1, 1]


def test_states_of_pytorch_load() -> None:
    torch = pytest.importorskip("torch")
    layer, other = nn.Linear(3, 2), torch.nn.Linear(3, 2)
    layer.load_state_dict(dict(other.named_parameters()))  # they require gradients
    np.testing.assert_array_equal(layer.weight.numpy(), other.weight.detach().numpy())
    layer.load_state_dict(other.to(torch.bfloat16).state_dict())
    np.testing.assert_array_equal(layer.weight.numpy(), other.weight.detach().float().numpy())
    other.float().load_state_dict(
        {name: torch.from_numpy(value) for name, value in layer.state_dict().items()}
    )


def test_tensors_and_parameters_load() -> None:
    layer, other = nn.Linear(3, 2), nn.Linear(3, 2)
    layer.load_state_dict(dict(other.named_parameters()))
    np.testing.assert_array_equal(layer.weight.numpy(), other.weight.numpy())
    layer.load_state_dict({"weight": tw.tensor(np.ones((2, 3))), "bias": tw.tensor([1.0, 2.0])})
    assert layer.bias.numpy().tolist() == [1, 2]


def test_a_broken_file_changes_nothing(tmp_path: Any) -> None:
    layer = nn.Linear(3, 2)
    before = layer.state_dict()
    layer.save(tmp_path / "a.safetensors")
    data = (tmp_path / "a.safetensors").read_bytes()
    (tmp_path / "a.safetensors").write_bytes(data[:-3])
    with pytest.raises(DataError):
        layer.load(tmp_path / "a.safetensors")
    np.testing.assert_array_equal(layer.weight.numpy(), before["weight"])


def test_loading_keeps_views_of_the_old_value() -> None:
    layer = nn.Linear(2, 2)
    view = layer.weight.numpy()
    kept = view.copy()
    layer.load_state_dict({"weight": np.zeros((2, 2)), "bias": np.zeros(2)})
    np.testing.assert_array_equal(view, kept)


# ---- copies ------------------------------------------------------------------------------------------------


def test_deepcopy_is_independent_and_keeps_ties() -> None:
    model = Tied()
    model.encode.weight.trainable = False
    twin = copy.deepcopy(model)
    assert twin.encode.weight is twin.decode.weight
    assert twin.encode.weight is not model.encode.weight
    assert not twin.encode.weight.trainable
    twin.encode.weight.assign(np.zeros((4, 4), np.float32))
    assert model.encode.weight.numpy().any()
    nested = copy.deepcopy(Nested())
    assert list(nested.state_dict()) == list(Nested().state_dict())
    assert nested(X).shape == (4, 2)


def test_shallow_copy_shares_parameters() -> None:
    layer = nn.Linear(2, 2)
    twin = copy.copy(layer)
    twin.extra = 1
    assert twin.weight is layer.weight
    assert not hasattr(layer, "extra")


def test_pickling_is_refused() -> None:
    with pytest.raises(TypeError, match=r"model\.save\(path\)"):
        pickle.dumps(nn.Linear(2, 2))


# ---- containers --------------------------------------------------------------------------------------------


def test_sequential() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    assert len(model) == 3
    assert [name for name, _ in model.named_parameters()] == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert model[-1].out_features == 2
    assert model[:2](X).shape == (4, 4)
    assert model[0] in model
    assert nn.ReLU() not in model
    model.append(nn.Tanh()).insert(1, nn.Linear(4, 4))
    assert [type(module).__name__ for module in model] == ["Linear", "Linear", "ReLU", "Linear", "Tanh"]
    del model[1]
    model[0] = nn.Linear(3, 4, bias=False)
    assert model(X).shape == (4, 2)
    assert [name for name, _ in model.named_parameters()] == ["0.weight", "2.weight", "2.bias"]
    named = nn.Sequential({"first": nn.Linear(3, 4), "act": nn.ReLU()})
    assert list(named.state_dict()) == ["first.weight", "first.bias"]
    named[0] = nn.Linear(3, 5)
    assert named(X).shape == (4, 5)
    assert list(named.state_dict()) == ["first.weight", "first.bias"]


def test_module_list_and_dict() -> None:
    layers = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)]).extend([nn.ReLU()])
    assert [name for name, _ in layers.named_children()] == ["0", "1", "2"]
    table = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.ReLU()})
    table["c"] = nn.Tanh()
    table.update({"d": nn.Identity()})
    assert list(table) == list(table.keys()) == ["a", "b", "c", "d"]
    assert "b" in table
    assert len(table) == 4
    del table["b"]
    assert [name for name, _ in table.named_children()] == ["a", "c", "d"]
    assert [type(module).__name__ for _, module in table.items()] == ["Linear", "Tanh", "Identity"]
    assert len(table.values()) == 3


def test_parameter_list() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            self.weights = nn.ParameterList([np.ones(2, np.float32), nn.Parameter(np.zeros(3, np.float32))])

    assert [(name, p.shape) for name, p in Model().named_parameters()] == [
        ("weights.0", (2,)),
        ("weights.1", (3,)),
    ]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: nn.Sequential([nn.ReLU()]), r"Sequential\(\*modules\)"),
        (lambda: nn.Sequential(lambda x: x), "holds modules"),
        (lambda: nn.ModuleList([1]), "holds modules, received a int"),
        (lambda: nn.ModuleDict({"a.b": nn.ReLU()}), "without dots"),
        (lambda: nn.ParameterList(["x"]), "holds parameters"),
        (lambda: nn.Sequential(nn.ReLU())["a"], "indexed by integers"),
    ],
)
def test_containers_explain_wrong_contents(make: Any, words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        make()


def test_container_lookups_that_fail() -> None:
    with pytest.raises(IndexError, match="1 entries"):
        nn.ModuleList([nn.ReLU()])[1]
    with pytest.raises(KeyError, match="it has 'a'"):
        nn.ModuleDict({"a": nn.ReLU()})["b"]


# ---- looking inside ----------------------------------------------------------------------------------------


def test_repr_is_that_of_pytorch() -> None:
    torch = pytest.importorskip("torch")

    def build(n: Any) -> Any:
        return n.Sequential(
            n.Conv2d(1, 2, 3, padding=1), n.Sequential(n.ReLU(), n.MaxPool2d(2)), n.Linear(4, 2)
        )

    assert repr(build(nn)) == repr(build(torch.nn))


def test_intermediates() -> None:
    model = Nested().eval()
    found = model.intermediates(X)
    assert list(found) == ["layers.0", "layers.1.0", "layers.1.1", "named.norm", "head", ""]
    np.testing.assert_array_equal(found[""].numpy(), model(X).numpy())
    assert list(model.intermediates(X, names=["head", "layers.0"])) == ["head", "layers.0"]
    shared = nn.ReLU()
    repeated = nn.Sequential(shared, nn.Linear(3, 3), shared).intermediates(X)
    assert [value.shape for value in repeated["0"]] == [(4, 3), (4, 3)]
    with pytest.raises(ArgumentError, match="no module named 'hed'"):
        model.intermediates(X, names=["hed"])
    model.unused = nn.Linear(3, 3)
    with pytest.raises(ArgumentError, match="did not call 'unused'"):
        model.intermediates(X, names=["unused"])


def test_intermediates_inside_a_compiled_function() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    compiled = tw.compile(lambda x: model.intermediates(x, names=["0"])["0"], backend="numpy")
    np.testing.assert_allclose(compiled(X).numpy(), model[0](X).numpy(), rtol=1e-6)


def test_summary_adds_up() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 5))
    summary = model.summary((4, 1, 8, 8))
    assert summary.parameters == sum(p.size for p in model.parameters()) == 385
    assert [row.output for row in summary.rows] == [
        "[4, 5]",
        "[4, 2, 6, 6]",
        "[4, 2, 6, 6]",
        "[4, 72]",
        "[4, 5]",
    ]
    assert [row.parameters for row in summary.rows] == [0, 20, 0, 0, 365]
    # results of the convolution, the ReLU and the linear layer, in float32; flattening makes no new ones
    assert [row.activation_bytes for row in summary.rows] == [0, 4 * 72 * 4, 4 * 72 * 4, 0, 4 * 5 * 4]
    assert summary.activation_bytes == sum(row.activation_bytes for row in summary.rows)
    assert summary.operations == sum(row.operations for row in summary.rows)
    assert summary.rows[1].operations >= 2 * 9 * 4 * 72
    assert summary.rows[4].operations >= 2 * 4 * 72 * 5
    model[0].requires_grad_(False)
    assert model.summary((4, 1, 8, 8)).trainable == 365
    text = str(summary)
    for words in ("Sequential.3", "Linear", "[4, 5]", "385", "total", "1.5 KiB"):
        assert words in text
    np.testing.assert_array_equal(
        [row.operations for row in model.summary(np.zeros((4, 1, 8, 8), np.float32)).rows],
        [row.operations for row in summary.rows],
    )


def test_summary_computes_nothing_and_changes_nothing() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout())
    state = tw.default_generator.state.numpy().copy()
    model.summary((4, 3))
    assert model.state_dict()["0.num_batches_tracked"] == 0
    np.testing.assert_array_equal(tw.default_generator.state.numpy(), state)
    assert Tied().summary((2, 4)).parameters == 16
    embedding = nn.Embedding(5, 3).summary((2, 7), dtype="int64")
    assert embedding.rows[0].output == "[2, 7, 3]"


@pytest.mark.parametrize("inputs", [(), ("x",), ((2, "B"),)])
def test_summary_explains_wrong_inputs(inputs: Any) -> None:
    with pytest.raises(ArgumentError, match="summary"):
        nn.Linear(3, 2).summary(*inputs)


# ---- errors that name the place ----------------------------------------------------------------------------


class LeNet(nn.Module):
    def __init__(self) -> None:
        self.conv1 = nn.Conv2d(1, 6, 5, padding=2)
        self.fc1 = nn.Linear(400, 120)

    def forward(self, x: Any) -> Any:
        x = nn.functional.max_pool2d(self.conv1(x).relu(), 2)
        return self.fc1(x.flatten(1))  # the wrong size


@pytest.mark.parametrize("compiled", [False, True])
def test_a_wrong_linear_size_names_the_layer_the_axis_both_sizes_and_the_line(compiled: bool) -> None:
    model = LeNet()
    call = tw.compile(model, backend="numpy") if compiled else model
    with pytest.raises(ShapeError) as caught:
        call(np.zeros((2, 1, 28, 28), np.float32))
    message = str(caught.value)
    for words in (
        "LeNet.fc1",
        "axis 1",
        "400",
        "1176",
        "nn.Linear(1176, 120)",
        "test_modules.py",
        "# the wrong size",
    ):
        assert words in message


def test_paths_follow_changes_of_the_model() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            self.layers = [nn.Linear(3, 3)]

        def forward(self, x: Any) -> Any:
            for layer in self.layers:
                x = layer(x)
            return x

    model, wrong = Model(), nn.Linear(2, 2)
    model(X)
    model.layers.append(wrong)  # a plain list: nobody is told
    with pytest.raises(ShapeError, match=r"Model\.layers\.1"):
        model(X)


def test_paths_are_those_of_the_calling_thread() -> None:
    model = LeNet()
    messages: list[str] = []

    def run() -> None:
        try:
            model.fc1(np.zeros((2, 3), np.float32))
        except ShapeError as error:
            messages.append(str(error))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert messages[0].startswith("Linear: ")
    with pytest.raises(ShapeError, match=r"^LeNet\.fc1"):
        model(np.zeros((2, 1, 28, 28), np.float32))
