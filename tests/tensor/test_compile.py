"""Compiled functions: signatures, nests, static values, guards, methods, graphs, errors of tracing."""

import dataclasses
import functools
import sys
import types as python

import numpy as np
import pytest

import thalweg as tw
from thalweg.errors import ArgumentError, GraphError, ShapeError, TraceError

X = tw.tensor([[1.0, 2.0], [3.0, 4.0]])


@pytest.fixture
def traced(monkeypatch):
    """Names of the functions traced during the test, in order."""
    from thalweg.tensor.compile import Compiled

    names = []
    original = Compiled._traced

    def observed(self, *args):
        names.append(self.name)
        return original(self, *args)

    monkeypatch.setattr(Compiled, "_traced", observed)
    return names


# ---- signatures --------------------------------------------------------------------------------------------


def test_one_trace_per_signature(traced):
    f = tw.compile(lambda x: x * 2)
    for _ in range(3):
        assert f(X).tolist() == [[2, 4], [6, 8]]
    assert f(X.numpy()).tolist() == [[2, 4], [6, 8]] and len(traced) == 1
    f(X[0])
    f(X.long())
    f(X.astype("float64"))
    assert len(traced) == 4
    f(X[0] + 1)
    assert len(traced) == 4


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (1, 2),
        (1, 1.0),
        (True, 1),
        (0.0, -0.0),
        ("a", "b"),
        (None, 0),
        ((1, 2), [1, 2]),
        ({"a": 1}, {"b": 1}),
        (1, (1,)),
    ],
)
def test_static_arguments_are_part_of_the_signature(traced, first, second):
    f = tw.compile(lambda x, option: (x * 1, option))
    assert f(X, first)[1] == first and f(X, second)[1] == second
    assert repr(f(X, first)[1]) == repr(first) and repr(f(X, second)[1]) == repr(second)
    assert len(traced) == 2


def test_nan_as_a_static_argument_is_found_again(traced):
    f = tw.compile(lambda x, option: x * option)
    assert np.isnan(f(X, float("nan")).numpy()).all()
    f(X, float("nan"))
    assert len(traced) == 1


def test_positional_and_keyword_arguments_and_defaults():
    @tw.compile
    def f(x, y=2.0, *rest, scale=1.0, **more):
        return x * y * scale + sum(rest) + sum(more.values())

    assert f(X, 3.0).tolist() == (X * 3).tolist()
    assert f(X, scale=X).tolist() == (X * 2 * X).tolist()
    assert f(X, 1.0, X, X).tolist() == (X * 3).tolist()
    assert f(X, extra=X).tolist() == (X * 3).tolist()


Pair = __import__("collections").namedtuple("Pair", "first second")


def test_nests_of_arguments_and_results():
    @tw.compile
    def f(batch, *, options):
        a, b = batch["pair"]
        return {
            "sum": a + b,
            "parts": [a, (b, None, "text", 3)],
            "pair": Pair(a * options["scale"], X),
            "empty": [],
        }

    found = f({"pair": (X, np.ones((2, 2), np.float32))}, options={"scale": 2})
    assert found["sum"].tolist() == [[2, 3], [4, 5]] and found["parts"][0].tolist() == X.tolist()
    assert found["parts"][1][1:] == (None, "text", 3) and found["empty"] == []
    assert type(found["pair"]) is Pair and found["pair"].first.tolist() == [[2, 4], [6, 8]]
    assert found["pair"].second is X


@dataclasses.dataclass(frozen=True)
class Batch:
    images: object
    labels: object
    scale: float = 1.0


def test_dataclasses_are_nests(traced):
    f = tw.compile(lambda batch: dataclasses.replace(batch, images=batch.images * batch.scale))
    for scale in (1.0, 2.0, 2.0):
        found = f(Batch(X + scale, np.arange(2), scale))
        assert found.images.tolist() == ((X + scale) * scale).tolist() and found.labels.tolist() == [0, 1]
    assert len(traced) == 2
    found = tw.grad(lambda batch: (batch.images * batch.labels).sum() * batch.scale)(Batch(X, X, 2.0))
    assert isinstance(found, Batch) and found.images.tolist() == (X * 2).tolist() and float(found.scale) == 30


def test_other_frameworks_tensors_are_inputs():
    torch = pytest.importorskip("torch")
    f = tw.compile(lambda x: x * 2)
    theirs = torch.ones(3)
    assert f(theirs).tolist() == [2, 2, 2]
    theirs += 1
    assert f(theirs).tolist() == [4, 4, 4] and len(f._entries) == 1


def test_generators_and_coroutines_are_refused():
    def generator(x):
        yield x

    async def coroutine(x):
        return x

    for function in (generator, coroutine):
        with pytest.raises(ArgumentError, match="after the trace is over"):
            tw.compile(function)


def test_results_are_independent_of_arguments_and_each_other():
    f = tw.compile(lambda x: (x, x, x + 0))
    source = np.ones(3, np.float32)
    first, second, third = f(source)
    source[:] = 9
    assert first.tolist() == second.tolist() == third.tolist() == [1, 1, 1]
    assert not np.shares_memory(first.numpy(), source)


def test_functions_without_tensors():
    assert tw.compile(lambda: None)() is None
    assert tw.compile(lambda: 3)() == 3
    assert tw.compile(lambda: tw.ones((2,)) * 3)().tolist() == [3, 3]
    assert tw.compile(lambda n: tw.arange(n))(3).tolist() == [0, 1, 2]


def test_non_contiguous_foreign_and_odd_arrays():
    f = tw.compile(lambda x: x * 2)
    base = np.arange(12, dtype=np.float32).reshape(3, 4)
    for odd in (
        base.T,
        base[:, ::2],
        base[::-1],
        base.astype(">f4"),
        base[:0],
        np.float32(3),
        np.asarray(3.5),
    ):
        np.testing.assert_array_equal(f(odd).numpy(), odd * 2)
        np.testing.assert_array_equal(f(tw.asarray(odd)).numpy(), odd * 2)
    np.testing.assert_array_equal(f(tw.zeros((2, 3))).numpy(), np.zeros((2, 3)))


@pytest.mark.parametrize("dtype", [str(d) for d in tw.types.ALL_DTYPES])
def test_every_element_type_passes_through(dtype):
    x = tw.tensor([0, 1, 1], dtype=dtype)
    found = tw.compile(lambda x: x.flip(0))(x)
    assert found.dtype is x.dtype and found.tolist() == [1, 1, 0]


# ---- captured values ---------------------------------------------------------------------------------------


def test_captured_tensors_become_inputs():
    table = tw.tensor(np.arange(1000, dtype=np.float32))
    f = tw.compile(lambda index: table[index] + table.sum() * 0)
    assert f(tw.tensor([3, 5])).tolist() == [3, 5]
    graph = f.graph(tw.tensor([3, 5]))
    assert len(graph.inputs) == 2 and graph.input_names == ("index", "captured0")
    assert not any(n.op.name == "constant" and n.outputs[0].size > 1 for n in graph.nodes)


def test_values_of_captured_tensors_may_be_read_while_tracing():
    limit = tw.tensor(2.0)
    f = tw.compile(lambda x: x * float(limit) if float(limit) > 1 else x)
    assert f(X).tolist() == (X * 2).tolist()


# ---- guards ------------------------------------------------------------------------------------------------

factor = 2.0
numbers = [1.0, 2.0]
table = np.array([1.0, 2.0], np.float32)
settings = python.SimpleNamespace(gain=1.0, parts={"bias": [0.5]})


@dataclasses.dataclass
class Options:
    gain: float = 1.0
    limit: float = 10.0


options = Options()


def helper(x):
    return x * factor


def set_global(name, value):
    return lambda monkeypatch: monkeypatch.setitem(globals(), name, value)


def set_element(container, place, value):
    return lambda monkeypatch: container.__setitem__(place, value)


CHANGES = {
    "a global": (lambda x: x * factor, set_global("factor", 3.0), 3.0),
    "a global of a helper": (lambda x: helper(x), set_global("factor", 3.0), 3.0),
    "the helper": (lambda x: helper(x), set_global("helper", lambda x: x * 7), 7.0),
    "a list": (lambda x: x * numbers[1], set_element(numbers, 1, 5.0), 5.0),
    "an array": (lambda x: x * table[1], set_element(table, 1, 5.0), 5.0),
    "a nested container": (
        lambda x: x * (settings.parts["bias"][0] * 4),
        set_element(settings.parts["bias"], 0, 1.0),
        4.0,
    ),
    "an attribute of a namespace": (
        lambda x: x * (1 + settings.gain),
        lambda m: m.setattr(settings, "gain", 2.0),
        3.0,
    ),
    "an attribute of an object": (
        lambda x: x * (1 + options.gain),
        lambda m: m.setattr(options, "gain", 2.0),
        3.0,
    ),
    "an attribute of a class": (
        lambda x: x * (1 + Options.gain),
        lambda m: m.setattr(Options, "gain", 2.0),
        3.0,
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_a_function_reads_is_guarded(traced, monkeypatch, name):
    function, change_it, expected = CHANGES[name]
    compiled = tw.compile(function)
    assert compiled(X).tolist() == (X * 2).tolist()
    compiled(X)
    assert len(traced) == 1
    change_it(monkeypatch)
    assert compiled(X).tolist() == (X * expected).tolist()
    compiled(X)
    assert len(traced) == 2


def test_closure_variables_are_guarded(traced):
    scale, parts = 2.0, {"a": [1.0]}

    @tw.compile
    def f(x):
        return x * scale + parts["a"][0]

    def inner():
        return (lambda x: x * scale)(X)

    g = tw.compile(inner)
    assert f(X).tolist() == (X * 2 + 1).tolist() and g().tolist() == (X * 2).tolist()
    scale = 3.0
    assert f(X).tolist() == (X * 3 + 1).tolist() and g().tolist() == (X * 3).tolist()
    parts["a"].append(0.0)
    parts["a"][0] = 5.0
    assert f(X).tolist() == (X * 3 + 5).tolist()
    assert traced == ["f", "inner", "f", "inner", "f"]


def test_captured_tensors_that_are_replaced_are_seen():
    offset = tw.tensor(1.0)
    f = tw.compile(lambda x: x + offset)
    assert f(X).tolist() == (X + 1).tolist()
    (program,) = next(iter(f._entries.values())).programs.values()
    offset = tw.tensor(5.0)
    assert f(X).tolist() == (X + 5).tolist()
    assert (
        next(iter(f._entries.values())).program is program
    )  # the same graph: traced again, not compiled again


def test_user_modules_are_guarded(monkeypatch, tmp_path, traced):
    (tmp_path / "my_settings_for_test.py").write_text("gain = 2.0\nother = 1.0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import my_settings_for_test as config

    f = tw.compile(lambda x: x * config.gain)
    assert f(X).tolist() == (X * 2).tolist()
    config.other = 7.0
    f(X)
    assert len(traced) == 1
    config.gain = 3.0
    assert f(X).tolist() == (X * 3).tolist()
    sys.modules.pop("my_settings_for_test")


def test_methods_of_user_classes_are_guarded(traced):
    class Scaler:
        power = 2

        def __init__(self):
            self.gain = 2.0

        def __call__(self, x):
            return x * self.gain * factor

    scaler = Scaler()
    f = tw.compile(lambda x: scaler(x))
    assert f(X).tolist() == (X * 4).tolist()
    scaler.gain = 1.0
    assert f(X).tolist() == (X * 2).tolist()
    Scaler.power = 3
    f(X)
    assert len(traced) == 3


def test_recursive_and_large_structures_are_followed_without_end():
    loop = {"gain": 2.0}
    loop["self"] = loop
    chain = None
    for _ in range(5000):
        chain = (chain, 1)

    def f(x):
        return x * loop["gain"] if chain else x

    compiled = tw.compile(f)
    assert compiled(X).tolist() == (X * 2).tolist()
    loop["gain"] = 3.0
    assert compiled(X).tolist() == (X * 3).tolist()


def test_default_arguments_are_guarded():
    def f(x, parts=[2.0]):  # noqa: B006 - the test is about this
        return x * parts[0]

    compiled = tw.compile(f)
    compiled(X)
    f.__defaults__[0][0] = 3.0
    assert compiled(X).tolist() == (X * 3).tolist()


def test_attributes_that_the_function_itself_changes_do_not_trace_for_ever(traced):
    class Module:
        def __setattr__(self, name, value):
            object.__setattr__(self, name, value)
            tw.bump_epoch()

        def named_parameters(self):
            return iter(())

        def modules(self):
            yield self

    module = Module()
    module.calls = 0

    @tw.compile
    def f(x):
        module.calls += 1
        return x * 2

    for _ in range(4):
        f(X)
    assert len(traced) == 1 and module.calls == 1


def test_the_reason_of_a_trace_is_told(monkeypatch, capsys):
    f = tw.compile(lambda x: x * factor)
    monkeypatch.setenv("THALWEG_DEBUG", "1")
    f(X)
    monkeypatch.setitem(globals(), "factor", 4.0)
    f(X)
    f(X[0])
    told = capsys.readouterr().err
    assert "no trace for these arguments: f32[2,2]" in told and "f32[2]" in told
    assert "the global 'factor' of <lambda> has changed from 2.0 to 4.0" in told


# ---- what can be compiled ----------------------------------------------------------------------------------


def test_methods_and_callable_objects():
    class Model:
        def __init__(self, gain):
            self.weight = tw.Parameter([gain])

        @tw.compile
        def scale(self, x):
            return x * self.weight

        def __call__(self, x):
            return x + self.weight

    first, second = Model(2.0), Model(3.0)
    assert first.scale(X).tolist() == (X * 2).tolist() and second.scale(X).tolist() == (X * 3).tolist()
    assert len(Model.scale._entries) == 2
    assert first.scale.graph(X).state[0].holder is first.weight
    assert tw.compile(first)(X).tolist() == (X + 2).tolist()
    bound = tw.compile(second.__call__)
    assert bound(X).tolist() == (X + 3).tolist()


def test_decorators_options_and_partial_functions():
    @tw.compile(backend="numpy")
    def f(x):
        """Doubles."""
        return x * 2

    assert f.__name__ == "f" and f.__doc__ == "Doubles." and f.__wrapped__(X).tolist() == f(X).tolist()
    assert type(f.program(X)).__name__ == "InterpretedProgram"
    assert tw.compile(f) is f
    assert tw.compile(functools.partial(lambda a, x: x * a, 3.0))(X).tolist() == (X * 3).tolist()
    assert tw.compile(tw.relu)(X).tolist() == X.tolist()


def test_nested_compiled_functions_are_traced_through():
    inner = tw.compile(lambda x: x * 2)
    outer = tw.compile(lambda x: inner(x) + inner(x + 1))
    assert outer(X).tolist() == (X * 4 + 2).tolist()
    assert not inner._entries


@pytest.mark.parametrize(
    ("use", "words"),
    [
        (lambda: tw.compile(3), "takes a function"),
        (lambda: tw.compile(lambda: 1, backend="cuda"), "backend"),
        (lambda: tw.compile(lambda: 1, threads=0), "threads"),
    ],
)
def test_wrong_options(use, words):
    with pytest.raises(ArgumentError, match=words):
        use()


# ---- looking inside ----------------------------------------------------------------------------------------


def test_graph_accepts_stand_ins_and_computes_nothing():
    weight = tw.Parameter(np.ones((3, 2), np.float32), name="fc.weight")
    f = tw.compile(lambda x, *, parts: (x @ weight.T + parts["bias"]).relu())
    graph = f.graph(tw.spec((5, 2)), parts={"bias": tw.spec(3)})
    text = str(graph)
    assert "%x: f32[5,2]" in text and '"fc.weight"' in text and "relu" in text
    assert graph.input_names == ("x", "parts__bias__") or graph.input_names == ("x", "parts['bias']")
    assert graph.outputs[0].shape == (5, 3)
    graph.verify()
    assert f._entries and all(entry.program is None for entry in f._entries.values())


def test_stand_ins_share_the_program_with_tensors(traced):
    f = tw.compile(lambda x: x + 1)
    f.program(tw.spec((2, 2)))
    f(X)
    assert len(traced) == 1


def test_source_and_plan_of_a_program():
    f = tw.compile(lambda x: (x * 2).sum())
    assert f.plan(X) is not None
    assert isinstance(f.source(X), str)


def test_unused_computations_are_left_out_of_the_graph():
    def f(x):
        x @ x
        return x + 1

    assert [node.op.name for node in tw.compile(f).graph(X).nodes] == ["constant", "broadcast", "add"]


def test_every_node_knows_its_line():
    def f(x):
        y = x * 2
        return tw.gradient((y * y).sum(), wrt=x)

    graph = tw.compile(f).graph(X)
    assert all(node.where and node.where[0].file == __file__ for node in graph.nodes)


# ---- errors of tracing -------------------------------------------------------------------------------------

VALUE_USES = {
    "if": (lambda x: 1 if x.sum() > 0 else 2, ["tw.where(condition, a, b)", "tw.cond"]),
    "and": (lambda x: x.any() and x, ["tw.where"]),
    "while": (lambda x: [0 for _ in iter(lambda: bool(x.sum()), False)], ["tw.where"]),
    "float": (lambda x: float(x.sum()), ["returned tensor"]),
    "int": (lambda x: int(x.sum()), ["returned tensor"]),
    "item": (lambda x: x.sum().item(), ["returned tensor"]),
    "tolist": (lambda x: x.tolist(), ["returned tensor"]),
    "numpy": (lambda x: x.numpy(), ["returned tensor"]),
    "asarray": (lambda x: np.asarray(x), ["returned tensor"]),
    "index": (lambda x: [1, 2, 3][x.sum().long()], ["x[index]"]),
    "range": (lambda x: list(range(x.sum().long())), ["tw.take"]),
    "in": (lambda x: 1.0 in x, ["(x == item).any()"]),
    "format": (lambda x: f"{x.sum():.2f}", ["returned tensor"]),
    "mask": (lambda x: x[x > 0], ["where(mask, x, 0)"]),
    "dlpack": (lambda x: np.from_dlpack(x), ["returned tensor"]),
}


@pytest.mark.parametrize("name", VALUE_USES)
def test_values_do_not_exist_in_a_trace(name):
    use, words = VALUE_USES[name]

    def step(x):
        return use(x)

    with pytest.raises(TraceError) as caught:
        tw.compile(step)(X)
    text = str(caught.value)
    assert all(word in text for word in words), text
    if name not in ("mask",):
        assert (
            "step is being traced" in text and __file__ in text and "VALUE_USES" not in text.split("at ")[0]
        )
    assert not tw.tracing()


def test_the_message_names_the_line_of_the_tensor_and_of_the_use():
    def step(x):
        total = x.sum()
        if total > 3:
            return x
        return -x

    with pytest.raises(TraceError) as caught:
        tw.compile(step)(X)
    assert "if total > 3:" in str(caught.value)
    with pytest.raises(TraceError) as caught:
        tw.compile(lambda data: bool(data))(X[0, 0])
    assert "the argument data of <lambda>" in str(caught.value)


def test_length_and_iteration_are_known_in_a_trace():
    f = tw.compile(lambda x: sum(row.sum() * len(row) for row in x))
    assert float(f(X)) == 20
    with pytest.raises(ShapeError, match="0-d"):
        tw.compile(lambda x: len(x.sum()))(X)


LEAKS = {
    "an operation": lambda t: t + 1,
    "its value": lambda t: t.numpy(),
    "truth": lambda t: bool(t.sum()) if t.ndim else bool(t),
    "another compiled function": lambda t: tw.compile(lambda x: x + 1)(t),
    "a captured one": lambda t: tw.compile(lambda x: x + t)(X),
    "a gradient": lambda t: tw.gradient(t.sum(), wrt=tw.Parameter([1.0])),
    "an assignment": lambda t: tw.Buffer(np.zeros((2, 2), np.float32)).assign(t),
}


@pytest.mark.parametrize("name", LEAKS)
def test_a_traced_tensor_that_leaks_is_an_error_with_its_line(name):
    kept = []

    def step(x):
        kept.append(x * 2)
        return x

    tw.compile(step)(X)
    with pytest.raises(TraceError) as caught:
        LEAKS[name](kept[0])
    text = str(caught.value)
    assert "step" in text and "kept.append(x * 2)" in text and "return the tensor from step" in text
    assert "trace over" in repr(kept[0])


def test_repr_of_a_traced_tensor():
    shown = []

    def step(x):
        shown.extend([repr(x), repr(x + 1), str(x)])
        return x

    tw.compile(step)(X)
    assert shown[0] == shown[2] == "tensor(f32[2,2], traced: input of step)"
    assert shown[1].startswith("tensor(f32[2,2], traced: add at test_compile.py:")


def test_shape_errors_in_a_trace_name_the_users_line():
    def step(x):
        return x @ tw.zeros((3, 3))

    with pytest.raises(ShapeError) as caught:
        tw.compile(step)(X)
    assert "return x @ tw.zeros((3, 3))" in str(caught.value) or "matmul" in str(caught.value)
    assert not tw.tracing()
    assert float((X + 1).sum()) == 14  # eager mode works again


def test_a_raw_graph_value_is_refused():
    from thalweg.graph import Value

    with pytest.raises(GraphError, match="graph value"):
        X + Value(X.type)


def test_creation_and_no_grad_inside_a_trace():
    def step(x):
        with tw.no_grad():
            y = x * 2
        return y + tw.tensor([[1.0, 1.0]]) + tw.asarray(np.ones((2, 2), np.float32)) + tw.eye(2)

    assert tw.compile(step)(X).tolist() == step(X).tolist()
