"""Random generators: reproducible, counted, the same compiled as interpreted, and state like any other."""

import copy

import numpy as np
import pytest

import thalweg as tw
from thalweg import random
from thalweg.errors import ArgumentError, DTypeError, TraceError


@pytest.fixture(autouse=True)
def seeded():
    saved = tw.default_generator.state.numpy().copy()
    tw.manual_seed(7)
    yield
    tw.default_generator.state.replace(saved)


def test_equal_seeds_give_equal_numbers():
    first = [
        random.uniform((4,)).tolist(),
        random.normal((3,)).tolist(),
        random.randint((5,), 0, 10).tolist(),
    ]
    tw.manual_seed(7)
    second = [
        random.uniform((4,)).tolist(),
        random.normal((3,)).tolist(),
        random.randint((5,), 0, 10).tolist(),
    ]
    assert first == second
    assert random.uniform((4,)).tolist() != random.uniform((4,)).tolist()
    assert tw.Generator(7).seed == 7 and repr(tw.Generator(2**64 - 1)) == f"Generator(seed={2**64 - 1})"


def test_generators_are_independent_of_the_default_one():
    own = tw.Generator(3)
    before = tw.default_generator.state.numpy().copy()
    first = random.uniform((4,), generator=own)
    np.testing.assert_array_equal(tw.default_generator.state.numpy(), before)
    assert first.tolist() == random.uniform((4,), generator=tw.Generator(3)).tolist()
    twin = copy.deepcopy(own)
    assert random.uniform((4,), generator=own).tolist() == random.uniform((4,), generator=twin).tolist()


def test_distributions():
    n = 20_000
    u = random.uniform((n,), -1.0, 3.0).numpy()
    assert u.min() >= -1 and u.max() < 3 and abs(u.mean() - 1) < 0.05 and abs(u.std() - 4 / 12**0.5) < 0.05
    g = random.normal((n,), 2.0, 0.5).numpy()
    assert abs(g.mean() - 2) < 0.02 and abs(g.std() - 0.5) < 0.02
    b = random.bernoulli((n,), 0.3)
    assert b.dtype is tw.bool_ and abs(b.numpy().mean() - 0.3) < 0.02
    i = random.randint((n,), 2, 5).numpy()
    assert i.dtype == np.int64 and set(np.unique(i)) == {2, 3, 4}
    assert random.normal((2,), dtype="float64").dtype is tw.float64
    order = random.permutation(1000).numpy()
    assert sorted(order) == list(range(1000)) and (order != np.arange(1000)).any()
    x = random.dropout(tw.ones((n,)), 0.25).numpy()
    assert set(np.unique(x)) <= {0.0, np.float32(1 / 0.75)} and abs(x.mean() - 1) < 0.02


@pytest.mark.parametrize("backend", ["c", "numpy"])
def test_a_compiled_function_draws_anew_in_each_call(backend):
    @tw.compile(backend=backend)
    def draw():
        return random.uniform((8,)), random.uniform((8,))

    calls = [draw() for _ in range(3)]
    numbers = {tuple(part.tolist()) for call in calls for part in call}
    assert len(numbers) == 6
    assert tw.default_generator.state.tolist() == [7, 0, 3, 0]
    tw.manual_seed(7)
    assert [part.tolist() for part in draw()] == [part.tolist() for part in calls[0]]


def test_both_backends_draw_the_same():
    def draw(generator):
        return random.uniform((5, 3), generator=generator), random.bernoulli((9,), 0.4, generator=generator)

    found = [tw.compile(draw, backend=backend)(tw.Generator(11)) for backend in ("c", "numpy")]
    for first, second in zip(*found, strict=True):
        assert first.tolist() == second.tolist()


@pytest.mark.parametrize("backend", ["c", "numpy"])
def test_the_call_number_carries_into_its_upper_word(backend):
    generator = tw.Generator(1)
    generator.state.replace(np.array([1, 0, 2**32 - 1, 4], np.uint32))
    compiled = tw.compile(lambda: random.uniform((2,), generator=generator), backend=backend)
    compiled()
    assert generator.state.tolist() == [1, 0, 0, 5]
    generator.state.replace(np.array([1, 0, 2**32 - 1, 4], np.uint32))
    random.uniform((2,), generator=generator)
    assert generator.state.tolist() == [1, 0, 0, 5]


def test_dropout_has_the_gradient_of_its_mask():
    x = tw.ones((100,))
    for f in (lambda x: tw.value_and_grad(lambda x: random.dropout(x, 0.5).sum())(x),):
        for run in (f, tw.compile(f)):
            value, found = run(x)
            assert float(value) == float(found.sum()) and set(np.unique(found.numpy())) == {0, 2}


def test_the_generator_is_found_as_state():
    graph = tw.compile(lambda: random.uniform((2,))).graph()
    (entry,) = graph.state
    assert entry.holder is tw.default_generator.state and entry.after is not None


def test_drawing_under_no_grad_and_within_grad_of_compiled_calls():
    p = tw.Parameter([1.0, 1.0])
    noisy = tw.compile(lambda: (p * random.uniform((2,))).sum())
    loss = noisy()
    assert abs(float(tw.gradient(loss, wrt=p).sum()) - float(loss)) < 1e-6  # the same numbers as in the call


@pytest.mark.parametrize(
    ("use", "error", "words"),
    [
        (lambda: tw.Generator(-1), ArgumentError, "0 to 2"),
        (lambda: tw.Generator(1.5), ArgumentError, "integer"),
        (lambda: random.uniform((2,), generator=3), ArgumentError, "tw.Generator"),
        (lambda: random.uniform((2,), 3.0, 1.0), ArgumentError, "low <= high"),
        (lambda: random.uniform((2,), dtype="int32"), DTypeError, "floating point"),
        (lambda: random.normal((2,), 0.0, -1.0), ArgumentError, "at least 0"),
        (lambda: random.bernoulli((2,), 1.5), ArgumentError, "probability"),
        (lambda: random.randint((2,), 5, 5), ArgumentError, "low < high"),
        (lambda: tw.compile(lambda: tw.manual_seed(1))(), TraceError, "before the compiled function"),
        (lambda: tw.compile(lambda: random.permutation(3))(), TraceError, "pass it as an argument"),
    ],
)
def test_errors(use, error, words):
    with pytest.raises(error, match=words):
        use()
