"""Models, optimisers and random generators in compiled programs: who sees which state, when it changes, and
that a call that fails changes nothing. Single holders are in tests/tensor/test_state.py."""

from __future__ import annotations

import copy
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import thalweg as tw
from thalweg import nn, optim
from thalweg.config import settings
from thalweg.errors import IndexRangeError

pytestmark = pytest.mark.usefixtures("needs_compiler")

Array = np.ndarray[Any, Any]
OPTIMIZERS: dict[str, Callable[[Any], Any]] = {
    "SGD": lambda p: optim.SGD(p, lr=0.1, momentum=0.9),
    "Adam": lambda p: optim.Adam(p, lr=1e-2),
}


class Network(nn.Module):
    """Every kind of state: parameters, running statistics, a random generator in dropout."""

    def __init__(self) -> None:
        self.norm = nn.BatchNorm1d(6)
        self.hidden = nn.Linear(6, 8)
        self.dropout = nn.Dropout(0.25, generator=tw.Generator(7))
        self.out = nn.Linear(8, 5)

    def forward(self, x: Any) -> Any:
        return self.out(self.dropout(self.hidden(self.norm(x)).relu()))


class Job:
    """A network, its optimiser and two compiled functions."""

    def __init__(self, optimizer: str = "SGD", seed: int = 0, threads: int | None = None) -> None:
        tw.manual_seed(seed)
        self.model = Network()
        self.optimizer = OPTIMIZERS[optimizer](self.model.parameters())
        self.train = tw.compile(self.step, backend="c", threads=threads)
        self.predict = tw.compile(self.model, backend="c", threads=threads)

    def step(self, x: Any, y: Any) -> Any:
        loss = nn.functional.cross_entropy(self.model(x), y)
        self.optimizer.minimize(loss)
        return loss

    def state(self) -> dict[str, bytes]:
        """The bytes of everything that a step changes."""
        arrays = {f"model.{k}": np.asarray(v) for k, v in self.model.state_dict().items()}
        arrays |= dict(flat(self.optimizer.state_dict(), "optimizer"))
        arrays["generator"] = self.model.dropout.generator.state.data
        return {name: array.tobytes() for name, array in arrays.items()}


def flat(nest: Any, path: str) -> Iterator[tuple[str, Array]]:
    if isinstance(nest, dict):
        for key, item in nest.items():
            yield from flat(item, f"{path}.{key}")
    elif isinstance(nest, (list, tuple)):
        for number, item in enumerate(nest):
            yield from flat(item, f"{path}.{number}")
    elif nest is not None and not isinstance(nest, str):
        yield path, np.asarray(nest)


def batch(count: int = 20, seed: int = 0) -> tuple[Array, Array]:
    random = np.random.default_rng(seed)
    return random.standard_normal((count, 6)).astype(np.float32), random.integers(0, 5, count)


# ---- a call that fails ----


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_label_out_of_range_leaves_all_state_as_it_was(optimizer: str, threads: int) -> None:
    job, twin = Job(optimizer, threads=threads), Job(optimizer, threads=threads)
    x, y = batch(40)
    for _ in range(2):
        assert job.train(x, y).item() == twin.train(x, y).item()
    before = job.state()
    for position, label in ((0, 5), (39, 5), (17, -101), (39, 2**40)):
        wrong = y.copy()
        wrong[position] = label
        with pytest.raises(IndexRangeError) as caught:
            job.train(x, wrong)
        message = str(caught.value)
        assert str(label) in message and "5" in message
        assert f"{os.path.basename(__file__)}:" in message and "cross_entropy(self.model(x), y)" in message
        assert job.state() == before
    for _ in range(2):  # and what follows is what would have followed
        assert job.train(x, y).item() == twin.train(x, y).item()
    assert job.state() == twin.state()


def test_the_first_call_may_fail_too() -> None:
    job, twin = Job(), Job()
    x, y = batch()
    with pytest.raises(IndexRangeError):
        job.train(x, y + 5)
    assert job.state() == twin.state()
    assert job.train(x, y).item() == twin.train(x, y).item()


def test_an_embedding_index_out_of_range_leaves_state_as_it_was() -> None:
    tw.manual_seed(0)
    table = nn.Embedding(50, 4)
    optimizer = optim.SGD(table.parameters(), lr=1.0)

    @tw.compile(backend="c")
    def step(tokens: Any) -> Any:
        loss = (table(tokens) ** 2).mean()
        optimizer.minimize(loss)
        return loss

    good = np.arange(40) % 50
    step(good)
    before = table.weight.numpy()
    with pytest.raises(IndexRangeError, match="50"):
        step(np.where(good == 39, 50, good))
    np.testing.assert_array_equal(table.weight.numpy(), before)
    step(good)
    assert (table.weight.numpy() != before).any()


def test_an_exception_between_two_updates_while_tracing() -> None:
    job = Job()
    x, y = batch()
    job.train(x, y)
    before = job.state()

    @tw.compile(backend="c")
    def broken(x: Any, y: Any) -> Any:
        job.step(x, y)
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        broken(x, y)
    assert job.state() == before


# ---- programs that share state ----


def test_training_and_evaluation_share_parameters_and_statistics() -> None:
    job, eager = Job(), Job()
    x, y = batch()
    for _ in range(3):
        job.model.train()
        job.train(x, y)
        job.model.eval()
        found = job.predict(x).numpy()
        eager.model.load_state_dict(job.model.state_dict())
        eager.model.eval()
        np.testing.assert_allclose(found, eager.model(x).numpy(), rtol=1e-5, atol=1e-6)


def test_evaluation_does_not_change_state() -> None:
    job = Job()
    x, y = batch()
    job.train(x, y)
    job.model.eval()
    before = job.state()
    first = job.predict(x).numpy()
    assert job.state() == before
    np.testing.assert_array_equal(job.predict(x).numpy(), first)


def test_eval_after_a_compiled_call_takes_effect() -> None:
    job = Job()
    x, _ = batch()
    dropped = job.predict(x).numpy()
    job.model.eval()
    evaluated = job.predict(x).numpy()
    assert (dropped != evaluated).any()
    job.model.train()
    job.model.dropout.generator.manual_seed(7)
    np.testing.assert_array_equal(job.predict(x).numpy(), dropped)


def test_frozen_layers_stay_as_they_are() -> None:
    job = Job()
    x, y = batch()
    job.train(x, y)
    job.model.hidden.weight.trainable = False
    kept, moved = job.model.hidden.weight.numpy(), job.model.out.weight.numpy()
    optimizer = optim.SGD([p for p in job.model.parameters() if p.trainable], lr=0.1)

    @tw.compile(backend="c")
    def step(x: Any, y: Any) -> None:
        optimizer.minimize(nn.functional.cross_entropy(job.model(x), y))

    step(x, y)
    np.testing.assert_array_equal(job.model.hidden.weight.numpy(), kept)
    assert (job.model.out.weight.numpy() != moved).any()


def test_loaded_state_is_used_by_the_next_call() -> None:
    job, other = Job(seed=0), Job(seed=1)
    x, y = batch()
    job.train(x, y)
    other.train(x, y)
    job.model.load_state_dict(other.model.state_dict())
    job.optimizer.load_state_dict(other.optimizer.state_dict())
    first = job.train(x, y).item()
    assert first == other.train(x, y).item()


def test_tied_weights_are_one_parameter_with_the_sum_of_gradients() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            self.table = nn.Embedding(12, 6)
            self.head = nn.Linear(6, 12, bias=False)
            self.head.weight = self.table.weight

        def forward(self, tokens: Any) -> Any:
            return self.head(self.table(tokens))

    tokens, labels = np.arange(24) % 12, (np.arange(24) * 5) % 12
    weights = []
    for compiled in (False, True):
        tw.manual_seed(0)
        model = Tied()
        assert len(list(model.parameters())) == 1
        optimizer = optim.Adam(model.parameters(), lr=0.01)

        def step(x: Any, y: Any, model: Any = model, optimizer: Any = optimizer) -> None:
            optimizer.minimize(nn.functional.cross_entropy(model(x), y))

        run = tw.compile(step, backend="c") if compiled else step
        for _ in range(5):
            run(tw.tensor(tokens), tw.tensor(labels))
        weights.append(model.head.weight.numpy())
        assert model.head.weight is model.table.weight
    np.testing.assert_allclose(weights[1], weights[0], rtol=1e-4, atol=1e-5)


# ---- what is held outside ----


@pytest.mark.parametrize("hold", [lambda p: p.numpy(), np.from_dlpack, lambda p: p.detach()])
def test_views_of_all_parameters_keep_their_values_across_steps(hold: Callable[[Any], Any]) -> None:
    job, twin = Job(), Job()
    x, y = batch()
    held = [(hold(p), p.numpy().copy()) for p in job.model.parameters()]
    for _ in range(3):
        job.train(x, y)
        twin.train(x, y)
    for view, values in held:
        np.testing.assert_array_equal(np.asarray(view), values)
    del held, view
    assert job.state() == twin.state()


def test_updates_are_in_place_again_when_views_are_gone() -> None:
    job = Job()
    x, y = batch()
    job.train(x, y)
    parameter = job.model.out.weight
    address = parameter.data.ctypes.data
    job.train(x, y)
    assert parameter.data.ctypes.data == address
    view = parameter.numpy()
    job.train(x, y)
    assert parameter.data.ctypes.data != address and view.ctypes.data == address
    moved = parameter.data.ctypes.data
    del view
    job.train(x, y)
    assert parameter.data.ctypes.data == moved


def test_results_and_inputs_are_never_overwritten() -> None:
    job = Job()
    x, y = batch()
    given = x.copy()
    losses = [job.train(x, y) for _ in range(3)]
    kept = [loss.item() for loss in losses]
    job.train(*batch(seed=1))
    assert [loss.item() for loss in losses] == kept and len(set(kept)) == 3
    np.testing.assert_array_equal(x, given)


def test_deepcopied_jobs_train_apart() -> None:
    job = Job()
    x, y = batch()
    job.train(x, y)
    model, optimizer = copy.deepcopy((job.model, job.optimizer))
    before = job.state()

    @tw.compile(backend="c")
    def step(x: Any, y: Any) -> Any:
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.minimize(loss)
        return loss

    step(x, y)
    assert job.state() == before
    assert any(
        (a.numpy() != b.numpy()).any()
        for a, b in zip(model.parameters(), job.model.parameters(), strict=True)
    )


# ---- numbers that change between calls ----


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_learning_rate_changes_without_a_new_program(
    optimizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from thalweg.runtime import program as programs

    job = Job(optimizer)
    x, y = batch()
    job.train(x, y)

    def refuse(*arguments: Any, **options: Any) -> None:
        raise AssertionError("compiled again")

    monkeypatch.setattr(programs, "NativeProgram", refuse)
    job.optimizer.lr = 0.0
    before = job.model.out.weight.numpy()
    job.train(x, y)
    np.testing.assert_array_equal(job.model.out.weight.numpy(), before)
    job.optimizer.lr = 0.5
    job.train(x, y)
    assert (job.model.out.weight.numpy() != before).any()


def test_a_schedule_acts_without_a_new_program(monkeypatch: pytest.MonkeyPatch) -> None:
    from thalweg.runtime import program as programs

    tw.manual_seed(0)
    weight = tw.Parameter(np.zeros(3, np.float32))
    optimizer = optim.SGD([weight], lr=1.0)
    schedule = optim.StepLR(optimizer, step_size=2, gamma=0.5)

    @tw.compile(backend="c")
    def step() -> None:
        optimizer.minimize(weight.sum())

    moves = []
    for number in range(6):
        before = weight.numpy().copy()
        step()
        schedule.step()
        moves.append(float((before - weight.numpy())[0]))
        if number == 0:
            monkeypatch.setattr(programs, "NativeProgram", None)
    np.testing.assert_allclose(moves, [1, 1, 0.5, 0.5, 0.25, 0.25])


# ---- threads and processes ----


def in_threads(count: int, work: Callable[[int], Any]) -> None:
    errors: list[BaseException] = []

    def guarded(number: int) -> None:
        try:
            work(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not any(thread.is_alive() for thread in threads)
    assert not errors, errors


def test_two_python_threads_training_one_model_do_whole_steps() -> None:
    job, twin = Job("Adam", threads=2), Job("Adam", threads=2)
    x, y = batch(40)
    job.model.dropout.p = twin.model.dropout.p = 0.0  # threads may take the random numbers in any order
    job.train(x, y)
    in_threads(2, lambda number: [job.train(x, y) for _ in range(25)])
    for _ in range(51):
        twin.train(x, y)
    assert job.model.out.weight.numpy().tobytes() == twin.model.out.weight.numpy().tobytes()


def test_predictions_beside_training_see_whole_states() -> None:
    job = Job(threads=2)
    job.model.eval()  # both threads: no statistics, no random numbers
    x, y = batch(40)
    twin = copy.deepcopy(job.model)
    optimizer = OPTIMIZERS["SGD"](twin.parameters())
    states = [tw.compile(twin, backend="c")(x).numpy().tobytes()]
    step = tw.compile(lambda x, y: optimizer.minimize(nn.functional.cross_entropy(twin(x), y)), backend="c")
    predict = tw.compile(twin, backend="c")
    for _ in range(20):
        step(x, y)
        states.append(predict(x).numpy().tobytes())
    seen: list[bytes] = []
    job.predict(x)

    def work(number: int) -> None:
        for _ in range(20):
            if number:
                seen.append(job.predict(x).numpy().tobytes())
            else:
                job.train(x, y)

    in_threads(2, work)
    assert set(seen) <= set(states)
    assert job.predict(x).numpy().tobytes() == states[-1]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_training_goes_on_in_a_forked_child_and_in_its_parent() -> None:
    job, twin = Job(threads=2), Job(threads=2)
    x, y = batch(40)
    job.train(x, y)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writing, np.float64(job.train(x, y).item()).tobytes())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        from_child = np.frombuffer(pipe.read(8))
    os.waitpid(child, 0)
    own = job.train(x, y).item()
    assert from_child.size == 1 and from_child[0] == own
    twin.train(x, y)
    assert twin.train(x, y).item() == own


def test_the_number_of_threads_may_change_between_calls() -> None:
    job, twin = Job(), Job(threads=1)
    x, y = batch(100)
    try:
        for count in (1, 3, 2, 7, 1):
            settings.set_threads(count)
            assert job.train(x, y).item() == twin.train(x, y).item()
    finally:
        settings.set_threads(None)
    assert job.state() == twin.state()
