"""State and scope: parameters, buffers, views, programs that share and change them, copies, threads, fork,
failures.
"""

import copy
import gc
import os
import sys
import threading
import weakref

import numpy as np
import pytest

import thalweg as tw
from thalweg.errors import ArgumentError, DTypeError, ShapeError, TraceError
from thalweg.tensor.state import join_locks, own_storage

pytestmark = pytest.mark.usefixtures("backend")  # all of this holds on every backend


class Module:
    """The least that the tensor layer asks of a module: attribute changes bump the epoch."""

    training = True

    def __setattr__(self, name, value):
        object.__setattr__(self, name, value)
        tw.bump_epoch()

    def named_parameters(self):
        for name, value in vars(self).items():
            if isinstance(value, tw.Parameter):
                yield name, value

    def modules(self):
        yield self


class Linear(Module):
    def __init__(self, scale=1.0):
        self.weight = tw.Parameter(np.full((2, 2), scale, np.float32), name="weight")
        self.mean = tw.Buffer(np.zeros(2, np.float32), name="mean")
        self.gain = 1.0
        self.sizes = [1, 2]

    def __call__(self, x):
        if self.training:
            self.mean.assign(self.mean * 0.5 + x.mean(0) * 0.5)
        return (x - self.mean) @ self.weight * self.gain


X = np.array([[1.0, 2.0], [3.0, 4.0]], np.float32)


def train(model, rate):
    """A compiled step of gradient descent."""

    @tw.compile
    def step(x):
        loss = (model(x) ** 2).mean()
        with tw.no_grad():
            found = tw.gradient(loss, wrt=model.weight)
            model.weight.assign(model.weight - rate * found)
        return loss

    return step


# ---- holders -----------------------------------------------------------------------------------------------


def test_parameter_and_buffer_basics():
    source = np.ones((2, 3), np.float64)
    parameter = tw.Parameter(source, name="w")
    source[:] = 5
    assert parameter.dtype is tw.float64 and parameter.shape == (2, 3) and parameter.trainable
    assert parameter.data.max() == 1 and parameter.data.flags.c_contiguous
    assert parameter.data.ctypes.data % 64 == 0
    assert tw.Parameter([1, 2], dtype="float32").dtype is tw.float32
    assert tw.Buffer([1, 2]).dtype is tw.int64
    for odd in (np.ones((2, 3)).T, np.ones(()), np.ones((0, 4), np.float32), np.ones(3, ">f4")):
        holder = tw.Buffer(odd)
        assert holder.shape == odd.shape and holder.data.flags.c_contiguous and holder.data.dtype.isnative


def test_parameters_are_floating_point():
    with pytest.raises(DTypeError, match=r"tw\.Buffer"):
        tw.Parameter([1, 2])
    with pytest.raises(ArgumentError, match="True or False"):
        tw.Parameter([1.0], trainable=1)


def test_assign_checks_shape_and_type():
    parameter = tw.Parameter([1.0, 2.0], name="fc.weight")
    with pytest.raises(ShapeError, match=r"'fc.weight' of shape \(2,\) cannot take a value of shape \(3,\)"):
        parameter.assign([1.0, 2.0, 3.0])
    with pytest.raises(DTypeError, match=r"astype\('float32'\)"):
        parameter.assign(np.ones(2))
    with pytest.raises(ShapeError):
        tw.compile(lambda: parameter.assign(tw.zeros((3,))))()
    assert parameter.tolist() == [1, 2] and parameter.version == 0
    parameter.assign(parameter + 1)
    assert parameter.tolist() == [2, 3] and parameter.version == 1
    scalar = tw.Buffer(np.float64(0))
    scalar.assign(0.1)
    assert scalar.item() == 0.1


def test_operators_that_assign_are_refused():
    parameter = tw.Parameter([1.0])
    with pytest.raises(ArgumentError, match=r"parameter\.assign"):
        parameter += 1
    with pytest.raises(ArgumentError, match="index_put"):
        parameter[0] = 1


def test_assigned_values_do_not_share_memory_with_their_source():
    parameter, source = tw.Parameter([1.0, 2.0]), np.array([3.0, 4.0], np.float32)
    parameter.assign(source)
    source[0] = 9
    assert parameter.tolist() == [3, 4]
    other = tw.Parameter([0.0, 0.0])
    other.assign(parameter)
    parameter.assign([7.0, 7.0])
    assert other.tolist() == [3, 4]


# ---- storage: in place only where nobody sees it -----------------------------------------------------------


def viewers(parameter):
    """Ways to hold a parameter's value outside."""
    yield parameter.numpy()
    yield np.asarray(parameter)
    yield parameter.numpy()[1:]
    yield memoryview(parameter.numpy())
    yield parameter.detach()
    yield parameter.T
    yield parameter.clone()
    yield (parameter * 1.0).sum()  # its history holds the value
    yield np.from_dlpack(parameter)
    yield parameter.data
    yield parameter.data.reshape(-1).view(np.int32)


@pytest.mark.parametrize("number", range(11))
def test_storage_is_copied_while_somebody_holds_it(number):
    parameter = tw.Parameter(np.ones((2, 2), np.float32))
    address = parameter.data.ctypes.data
    view = list(viewers(parameter))[number]
    before = copy.deepcopy(view) if isinstance(view, tw.Tensor) else np.array(view)
    storage = parameter.storage_for_update()
    storage[...] = 5
    assert storage.ctypes.data != address
    np.testing.assert_array_equal(np.asarray(view), np.asarray(before))
    assert parameter.tolist() == [[5, 5], [5, 5]]


def test_storage_is_kept_once_nobody_holds_it():
    parameter = tw.Parameter(np.ones((2, 2), np.float32))
    address = parameter.data.ctypes.data
    for view in viewers(parameter):
        del view
    storage = parameter.storage_for_update()
    assert storage.ctypes.data == address and storage.flags.writeable
    storage[...] = 3
    assert parameter.tolist() == [[3, 3], [3, 3]]
    del storage
    for _ in range(3):
        assert parameter.storage_for_update().ctypes.data == address


def test_a_read_in_eager_mode_does_not_count_as_held():
    parameter = tw.Parameter(np.ones(3, np.float32))
    address = parameter.data.ctypes.data
    float((parameter * 2).sum())
    assert parameter.storage_for_update().ctypes.data == address


def test_every_update_raises_the_version_and_is_seen_by_eager_reads():
    parameter = tw.Parameter([1.0])
    assert float(parameter * 1) == 1
    parameter.storage_for_update()[...] = 2
    assert float(parameter * 1) == 2 and parameter.version == 1
    parameter.replace(np.array([3.0], np.float32))
    assert float(parameter * 1) == 3 and parameter.version == 2


def test_adopted_arrays_must_be_seen_through_their_views():
    parameter = tw.Parameter(np.ones(4, np.float32))
    mine = own_storage(np.full(4, 2, np.float32))
    parameter.adopt(mine)
    assert np.shares_memory(parameter.numpy(), mine)
    with pytest.raises(ArgumentError, match="not a view"):
        parameter.adopt(np.ones(8, np.float32)[::2])
    with pytest.raises(ArgumentError, match="not a view"):
        parameter.adopt(np.ones(8, np.float32)[:4])


@pytest.mark.parametrize("hold", [lambda p: p.numpy(), np.from_dlpack], ids=["numpy", "dlpack"])
def test_views_held_across_a_compiled_update_keep_their_values(hold):
    model = Linear()
    step = train(model, 0.1)
    held = [hold(model.weight)]
    for _ in range(3):
        step(X)
        held.append(hold(model.weight))
    values = [view.copy() for view in held]
    step(X)
    for view, value in zip(held, values, strict=True):
        np.testing.assert_array_equal(view, value)
    assert len({value.tobytes() for value in values}) == 4


def test_a_torch_view_held_across_a_compiled_update_keeps_its_values():
    torch = pytest.importorskip("torch")
    model = Linear()
    view = torch.from_dlpack(model.weight)
    assert view.data_ptr() == model.weight.data.ctypes.data
    train(model, 0.1)(X)
    assert view.tolist() == [[1, 1], [1, 1]] and model.weight.tolist() != [[1, 1], [1, 1]]


# ---- state in compiled functions ---------------------------------------------------------------------------


def test_reading_is_an_input_and_assigning_an_output():
    counter = tw.Buffer(0, name="counter")

    @tw.compile
    def count():
        counter.assign(counter + 1)
        first = counter * 10
        counter.assign(counter + 1)
        return first, counter, counter + 0

    for expected in (2, 4, 6):
        first, second, third = count()
        assert (int(first), int(second), int(third), int(counter)) == (
            10 * expected - 10,
            expected,
            expected,
            expected,
        )
    graph = count.graph()
    assert [entry.holder is counter for entry in graph.state] == [True] and graph.state[0].after is not None
    second.numpy()
    assert type(second) is tw.Tensor  # the value, not the holder


def test_results_do_not_change_when_the_state_does():
    counter = tw.Buffer([0.0])

    @tw.compile
    def count():
        counter.assign(counter + 1)
        return counter

    results = [count() for _ in range(3)]
    assert [result.item() for result in results] == [1, 2, 3]


def test_swapping_two_holders_in_one_program():
    first, second = tw.Buffer([1.0]), tw.Buffer([2.0])

    @tw.compile
    def swap():
        old = first + 0
        first.assign(second)
        second.assign(old)

    assert swap() is None
    assert (first.item(), second.item()) == (2, 1)
    swap()
    assert (first.item(), second.item()) == (1, 2)


@pytest.mark.parametrize("shift", [1, 2])
def test_rotating_holders_in_one_program(shift):
    holders = [tw.Buffer([float(number)]) for number in range(5)]

    @tw.compile
    def rotate():
        old = [holder + 0 for holder in holders]
        for number, holder in enumerate(holders):
            holder.assign(old[(number + shift) % 5] * 2)

    rotate()
    rotate()
    assert [holder.item() for holder in holders] == [4.0 * ((number + 2 * shift) % 5) for number in range(5)]


def test_assigning_a_holder_its_own_value_changes_nothing():
    buffer = tw.Buffer([1.0, 2.0])
    tw.compile(lambda: buffer.assign(buffer))()
    assert buffer.tolist() == [1, 2]


def test_eager_changes_between_calls_are_seen():
    model = Linear()
    predict = tw.compile(lambda x: x @ model.weight)
    before = predict(X)
    model.weight.assign(model.weight * 2)
    np.testing.assert_array_equal(predict(X).numpy(), 2 * before.numpy())
    assert len(predict._entries) == 1


def test_train_and_eval_programs_share_parameters():
    model = Linear()
    step = train(model, 0.05)
    predict = tw.compile(lambda x: model(x))
    model.training = False
    first = predict(X)
    model.training = True
    for _ in range(3):
        step(X)
    model.training = False
    second = predict(X)
    np.testing.assert_allclose(second.numpy(), (X - model.mean.numpy()) @ model.weight.numpy(), rtol=1e-6)
    assert not np.array_equal(first.numpy(), second.numpy())


def test_eval_after_a_compiled_call_takes_effect_and_back_reuses_the_program():
    model = Linear()
    apply = tw.compile(lambda x: model(x))
    apply(X)
    programs = []
    for training in (False, True, False, True):
        model.training = training
        before = model.mean.numpy().copy()
        apply(X)
        assert np.array_equal(before, model.mean.numpy()) is not training
        (entry,) = apply._entries.values()
        programs.append(entry.program)
    assert programs[0] is programs[2] and programs[1] is programs[3] and programs[0] is not programs[1]


def test_a_rate_held_in_a_buffer_changes_without_a_new_trace():
    model, rate = Linear(), tw.Buffer(0.0)
    traces = []

    @tw.compile
    def step(x):
        traces.append(1)
        loss = (model(x) ** 2).mean()
        with tw.no_grad():
            model.weight.assign(model.weight - rate * tw.gradient(loss, wrt=model.weight))

    step(X)
    assert model.weight.tolist() == [[1, 1], [1, 1]]
    for value in (0.1, 0.2):
        rate.assign(value)
        step(X)
    assert model.weight.tolist() != [[1, 1], [1, 1]]
    # `traces` itself is a container that the function changes: one more trace, and the same program
    assert len(traces) <= 4 and len(next(iter(step._entries.values())).programs) == 1


def test_tied_weights_are_one_parameter():
    shared = tw.Parameter([2.0], name="shared")
    first, second = Module(), Module()
    first.weight = second.weight = shared

    @tw.compile
    def step(x):
        loss = (x * first.weight * second.weight).sum()
        found = tw.gradient(loss, wrt=[first.weight, second.weight])
        return found

    found = step(np.array([3.0], np.float32))
    assert [item.item() for item in found] == [12, 12]  # d(3 w^2)/dw, not its parts
    assert len(step.graph(np.array([3.0], np.float32)).state) == 1


def test_a_parameter_passed_as_an_argument_is_found_by_identity():
    first, second = tw.Parameter([1.0]), tw.Parameter([10.0])

    @tw.compile
    def double(p):
        p.assign(p * 2)
        return p + 0

    assert [double(first).item(), double(second).item(), double(first).item()] == [2, 20, 4]
    assert (first.item(), second.item()) == (4, 20)


def test_deepcopied_models_train_apart():
    model = Linear()
    twin = copy.deepcopy(model)
    train(model, 0.1)(X)
    assert twin.weight.tolist() == [[1, 1], [1, 1]] and twin.mean.tolist() == [0, 0]
    train(twin, 0.1)(X)
    np.testing.assert_array_equal(twin.weight.numpy(), model.weight.numpy())


def test_deepcopy_of_an_object_with_a_compiled_method_compiles_anew():
    class Counter:
        def __init__(self):
            self.count = tw.Buffer(0)
            self.step = tw.compile(self.plain)

        def plain(self):
            self.count.assign(self.count + 1)

    counter = Counter()
    counter.step()
    twin = copy.deepcopy(counter)
    twin.step()
    twin.step()
    assert (int(counter.count), int(twin.count)) == (1, 3)


# ---- failures ----------------------------------------------------------------------------------------------


def test_an_exception_while_tracing_leaves_the_state_as_it_was():
    counter = tw.Buffer(5)

    @tw.compile
    def fail(x):
        counter.assign(counter + 1)
        raise KeyError("stop")

    with pytest.raises(KeyError):
        fail(X)
    assert int(counter) == 5 and counter.version == 0 and not tw.tracing()


def test_an_error_while_running_leaves_the_state_as_it_was():
    counter, table = tw.Buffer(0), tw.Parameter(np.eye(3, dtype=np.float32))

    @tw.compile
    def look_up(index):
        counter.assign(counter + 1)
        rows = table[index]
        table.assign(table * 2)
        return rows

    look_up(np.array([0, 2]))
    for bad in ([0, 3], [-4]):
        with pytest.raises(tw.errors.IndexRangeError):
            look_up(np.array(bad))
    assert int(counter) == 1 and table.numpy().max() == 2
    look_up(np.array([1, 1]))
    assert int(counter) == 2 and table.numpy().max() == 4


def test_a_program_error_does_not_keep_the_lock():
    table = tw.Parameter(np.eye(3, dtype=np.float32))

    @tw.compile
    def look_up(index):
        rows = table[index]
        table.assign(table * 2)
        return rows

    with pytest.raises(tw.errors.IndexRangeError):
        look_up(np.array([7]))
    done = []
    thread = threading.Thread(target=lambda: done.append(table.numpy().max()))
    thread.start()
    thread.join(5)
    assert done == [1]


# ---- threads and processes ---------------------------------------------------------------------------------


def run_threads(count, work):
    """Run `work(number)` in several threads and raise the first error."""
    errors = []

    def guarded(number):
        try:
            work(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    if errors:
        raise errors[0]


def test_two_threads_call_one_function_that_updates_state():
    counter = tw.Buffer(0)

    @tw.compile
    def count(x):
        counter.assign(counter + 1)
        return x + counter

    run_threads(4, lambda number: [count(np.arange(3 + number % 2)) for _ in range(50)])
    assert int(counter) == 200


def test_two_threads_trace_and_call_a_pure_function():
    model = Linear()
    predict = tw.compile(lambda x: x @ model.weight)
    results = {}

    def work(number):
        x = np.full((number % 3 + 1, 2), number, np.float32)
        results[number] = [predict(x).numpy() for _ in range(20)]

    run_threads(6, work)
    for number, found in results.items():
        assert all(np.array_equal(item, np.full((number % 3 + 1, 2), 2 * number)) for item in found)


def test_a_reader_never_sees_half_an_update():
    buffer = tw.Buffer(np.zeros(100_000, np.float32))
    step = tw.compile(lambda: buffer.assign(buffer + 1))
    step()
    stop = threading.Event()
    torn = []

    def read(number):
        while not stop.is_set():
            view = buffer.numpy()
            if view.min() != view.max():
                torn.append(view)

    def work(number):
        if number == 0:
            for _ in range(50):
                step()
            stop.set()
        else:
            read(number)

    run_threads(3, work)
    assert not torn and buffer.numpy()[0] == 51


def test_traces_are_private_to_their_thread():
    entered, finished = threading.Event(), threading.Event()
    found = []

    @tw.compile
    def slow(x):
        entered.set()
        finished.wait(30)
        return x * 2

    thread = threading.Thread(target=lambda: slow(X))
    thread.start()
    entered.wait(30)
    found.append(float(tw.tensor(1.0) + 1))  # eager here while the other thread traces
    assert not tw.tracing()
    finished.set()
    thread.join(30)
    assert found == [2]


def test_state_sets_join_their_locks():
    first, second, third = (tw.Buffer(0) for _ in range(3))
    assert first._lock is not second._lock
    join_locks([first, second])
    join_locks([second, third])
    assert first._lock is second._lock is third._lock


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_compiled_functions_work_after_a_fork():
    model = Linear()
    step = train(model, 0.1)
    step(X)
    holding, release = threading.Event(), threading.Event()

    def hold():  # another thread holds the locks at the moment of the fork
        with model.weight._lock.lock, step._lock.lock:
            holding.set()
            release.wait(30)

    thread = threading.Thread(target=hold)
    thread.start()
    holding.wait(30)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            before = model.weight.numpy().copy()
            step(X)
            step(np.ones((3, 2), np.float32))
            code = 0 if not np.array_equal(before, model.weight.numpy()) else 2
        finally:
            os._exit(code)
    release.set()
    thread.join(30)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    step(X)


# ---- life times --------------------------------------------------------------------------------------------


def test_a_compiled_method_does_not_keep_its_object_alive():
    class Model(Module):
        def __init__(self):
            self.weight = tw.Parameter([1.0])

        @tw.compile
        def scale(self, x):
            return x * self.weight

    model = Model()
    assert model.scale(tw.tensor([3.0])).item() == 3
    assert len(Model.scale._entries) == 1
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None and len(Model.scale._entries) == 0


def test_parameters_are_freed_with_their_results():
    parameter = tw.Parameter(np.ones(10, np.float32))
    gone = weakref.ref(parameter)
    loss = (parameter * 2).sum()
    tw.gradient(loss, wrt=parameter)
    del parameter, loss
    gc.collect()
    assert gone() is None


@pytest.mark.skipif(sys.implementation.name != "cpython", reason="counts references")
def test_the_reference_count_of_an_unshared_array_is_calibrated():
    from thalweg.tensor import state

    holder = tw.Buffer(np.ones(3))
    assert not state._COUNTED or holder._references() == state._UNSHARED


# ---- structure ---------------------------------------------------------------------------------------------


def test_holders_made_while_tracing_become_state():
    slots = {}

    @tw.compile
    def accumulate(x):
        if "sum" not in slots:
            slots["sum"] = tw.Buffer(np.zeros(2, np.float32))
        slots["sum"].assign(slots["sum"] + x.sum(0))
        return slots["sum"]

    for expected in (1, 2, 3):
        assert accumulate(X).tolist() == [4 * expected, 6 * expected]


def test_values_of_holders_cannot_be_asked_for_in_a_trace():
    buffer = tw.Buffer(3)
    for use in (float, int, bool, lambda b: b.numpy(), lambda b: b.tolist(), lambda b: range(b), np.asarray):
        with pytest.raises(TraceError, match="being traced"):
            tw.compile(lambda use=use: use(buffer))()
    assert "Buffer(3)" in repr(buffer)
