"""Gradients for users: `gradient`, `grad`, `value_and_grad`, `vjp`, `no_grad`, `release`.

In: tensors with history (eager) or in a trace. Out: tensors that `thalweg.autodiff` computes from the graph;
they are ordinary tensors, so that gradients of gradients need nothing further."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from thalweg import autodiff
from thalweg.errors import ArgumentError, GradientError
from thalweg.graph import Builder, Value, function, using
from thalweg.graph.build import location, user_span
from thalweg.ops.elementwise import Cast
from thalweg.ops.sources import full
from thalweg.tensor import eager, nest
from thalweg.tensor.eager import HistoryNode, Released, Source, history, recording
from thalweg.tensor.state import Holder, Parameter
from thalweg.tensor.tensor import Tensor, as_array, wrap
from thalweg.tensor.trace import Trace, current_trace
from thalweg.types import Type

# ---- no_grad, release ---------------------------------------------------------------------------------


class no_grad:
    """Inside, operations keep no history and gradients take their results as constant.

    A context manager, `with tw.no_grad():`, and a decorator, `@tw.no_grad` or `@tw.no_grad()`.
    """

    def __new__(cls, decorated: Callable[..., Any] | None = None) -> Any:
        return super().__new__(cls) if decorated is None else _without_history(decorated)

    def __init__(self, decorated: None = None) -> None:
        self._previous: list[bool] = []

    def __enter__(self) -> None:
        self._previous.append(eager.mode.recording)
        eager.mode.recording = False

    def __exit__(self, *error: object) -> None:
        eager.mode.recording = self._previous.pop()

    def __call__(self, decorated: Callable[..., Any]) -> Callable[..., Any]:
        return _without_history(decorated)


def _without_history(decorated: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(decorated)
    def run(*args: Any, **kwargs: Any) -> Any:
        with recording(False):
            return decorated(*args, **kwargs)

    return run


def release(loss: Tensor) -> None:
    """Forget how `loss` was computed; its value stays. A later gradient of it is an error that names this
    line.
    """
    trace = current_trace()
    if trace is not None:
        trace.released[id(loss._read())] = user_span()
    elif loss._read().node is not None:
        where, scope = location()
        value = loss._read()
        value.node = HistoryNode(Released(), (), (value.type,), (value.data,), where, scope)


# ---- the gradient of a loss --------------------------------------------------------------------------------


def gradient(loss: Any, wrt: Any, *, allow_unused: bool = False) -> Any:
    """The gradient of a scalar `loss` with respect to `wrt`, in the same nest as `wrt`.

    `wrt` is a tensor, a Parameter, a module (the result is a dict: parameter name -> gradient; frozen
    parameters are left out), or lists, tuples and dicts of these. Raises `GradientError` where the loss is
    not a floating-point scalar, or does not depend on something in `wrt`; with `allow_unused` that gradient
    is zeros."""
    _check_loss(loss)
    names: list[str] = []
    targets: list[Tensor] = []

    def collect(leaf: Any, path: str) -> int:
        tensor = _check_target(leaf, path)
        names.append(_name(tensor, path))
        targets.append(tensor)
        return len(targets) - 1

    places = nest.map_nest(collect, _expand_modules(wrt), "")
    if not targets:
        raise GradientError(
            "wrt is empty: there is nothing to differentiate with respect to"
            + ("; all parameters of the module are frozen (trainable = False)" if _is_module(wrt) else "")
        )
    results = _gradients([loss], None, targets, names, allow_unused)
    return nest.map_nest(lambda place, _: results[place], places)


def gradients_where_used(loss: Any, parameters: Sequence[Parameter]) -> list[Tensor | None]:
    """The gradient for each parameter, None for those that the loss does not depend on (for optimisers)."""
    _check_loss(loss)
    targets = [_check_target(parameter, f"[{position}]") for position, parameter in enumerate(parameters)]
    return _found_gradients([loss], None, targets, [_name(t, f"[{n}]") for n, t in enumerate(targets)])


def _is_module(item: Any) -> bool:
    return callable(getattr(item, "named_parameters", None))


def _expand_modules(wrt: Any) -> Any:
    """`wrt` with a dict of trainable parameters in place of each module, and iterators as lists."""
    if isinstance(wrt, Iterator):
        wrt = list(wrt)

    def expand(leaf: Any, path: str) -> Any:
        if not _is_module(leaf):
            return leaf
        return {name: parameter for name, parameter in leaf.named_parameters() if parameter.trainable}

    return nest.map_nest(expand, wrt)


def _name(tensor: Tensor, path: str) -> str:
    own = getattr(tensor, "name", "")
    return f"wrt{path} ({own})" if own else f"wrt{path}"


def _check_loss(loss: Any, what: str = "the loss") -> None:
    if not isinstance(loss, Tensor):
        hint = (
            "; float() and numpy() lose the history"
            if isinstance(loss, (float, int, np.ndarray, np.generic))
            else ""
        )
        raise GradientError(
            f"{what} must be a tensor, received {loss!r:.60} of type {type(loss).__name__}{hint}"
        )
    if loss.size != 1:
        raise GradientError(
            f"{what} must be a scalar, received shape {loss.shape}; write {_call_of(what)}.mean() or .sum(), "
            "or tw.vjp(f, x) for the derivative of a function with many results"
        )
    if not loss.dtype.is_floating:
        raise GradientError(
            f"{what} must be floating point, received {loss.dtype}, which has no gradient; comparisons, "
            "argmax and integer casts end the path. Write loss.float() only where the values are meant"
        )


def _call_of(what: str) -> str:
    return "loss" if what == "the loss" else "result"


def _check_target(leaf: Any, path: str) -> Tensor:
    if not isinstance(leaf, Tensor):
        raise GradientError(
            f"wrt{path} must be a tensor, a Parameter or a module, received {leaf!r:.60} of type "
            f"{type(leaf).__name__}; for names and positions of arguments write tw.grad(f, wrt=...)"
        )
    if not leaf.dtype.is_floating:
        raise GradientError(
            f"wrt{path} has the element type {leaf.dtype}: only floating-point tensors have a gradient; "
            "write x.float() before it is used"
        )
    if isinstance(leaf, Holder) and not isinstance(leaf, Parameter):
        raise GradientError(
            f"wrt{path}: {leaf.name or 'this tensor'!r} is a {type(leaf).__name__}, which is kept but not "
            "trained; make it a tw.Parameter, or pass its value as an argument to tw.grad(f)"
        )
    if isinstance(leaf, Parameter) and not leaf.trainable:
        raise GradientError(
            f"wrt{path}: the parameter {leaf.name!r} is frozen (trainable = False); leave it out, or set "
            "parameter.trainable = True before the loss is computed"
        )
    return leaf


def _gradients(
    outputs: Sequence[Tensor],
    cotangents: Sequence[Tensor] | None,
    targets: Sequence[Tensor],
    names: Sequence[str],
    allow_unused: bool,
) -> list[Tensor]:
    """`_found_gradients`, with zeros (where `allow_unused`) or an error for those that do not exist."""
    results = []
    for target, name, found in zip(
        targets, names, _found_gradients(outputs, cotangents, targets, names), strict=True
    ):
        if found is None and not allow_unused:
            raise _unused(name, target, outputs)
        results.append(function("zeros_like")(target) if found is None else found)
    return results


def _found_gradients(
    outputs: Sequence[Tensor],
    cotangents: Sequence[Tensor] | None,
    targets: Sequence[Tensor],
    names: Sequence[str],
) -> list[Tensor | None]:
    """For each target the sum over outputs of cotangent (None: 1) times derivative; None where there is no
    path.
    """
    trace = current_trace()
    values = [output._read() for output in outputs]
    for target, name in zip(targets, names, strict=True):
        # Without history some uses of the tensor may have been recorded and others not.
        if trace is None and not isinstance(target, Holder) and target._read().node is None:
            raise _untracked(name, target)
    nodes = _checked_history(values, trace)
    candidates = [_places_of(target, nodes, trace) for target in targets]
    builder: Builder = eager.EAGER if trace is None else trace.builder
    with using(builder):
        seeds = (
            [full(value.shape, 1, value.dtype) for value in values]
            if cotangents is None
            else [cotangent._read() for cotangent in cotangents]
        )
        flat = [value for places in candidates for value in places]
        found = iter(autodiff.vjp(values, seeds, flat, () if trace is None else trace.unrecorded))
        results: list[Value | None] = []
        for places in candidates:
            parts = [part for part in [next(found) for _ in places] if part is not None]
            results.append(functools.reduce(function("add"), parts) if parts else None)
    if trace is not None and not eager.mode.recording:
        trace.unrecorded.extend(value for value in results if value is not None)
    return [None if value is None else wrap(value, trace) for value in results]


def _checked_history(values: Sequence[Value], trace: Trace | None) -> list[Any]:
    """All nodes behind the values; raises `GradientError` where a history has been released."""
    nodes = {id(node): node for value in values for node in history(value)}
    for node in nodes.values():
        if isinstance(node.op, Released):
            raise _released(node.where[0])
    if trace is not None and trace.released:
        for value in (*values, *(item for node in nodes.values() for item in node.inputs)):
            if id(value) in trace.released:
                raise _released(trace.released[id(value)])
    return list(nodes.values())


def _released(span: Any) -> GradientError:
    return GradientError(
        f"the history of this loss was released by minimize at {span.file}:{span.line} in {span.function}\n"
        f"      {span.text}\n"
        "  write instead: compute the loss anew, or take all gradients before: gradients = "
        "tw.gradient(loss, wrt=[...])"
    )


def _places_of(target: Tensor, nodes: Sequence[Any], trace: Trace | None) -> list[Value]:
    """The values that stand for a target: for a holder, each value that it was read with."""
    if trace is not None:
        if isinstance(target, Holder):
            known = trace.holders.get(id(target))
            return [] if known is None else list(known.reads)
        return [target._read()]
    if isinstance(target, Holder):
        return [
            node.outputs[0]
            for node in nodes
            if isinstance(node.op, Source) and callable(node.op.owner) and node.op.owner() is target
        ]
    return [target._read()]


def _unused(name: str, target: Tensor, outputs: Sequence[Tensor]) -> GradientError:
    reasons = (
        "detach(), stop_gradient, no_grad, numpy() and comparisons end the path from a tensor to the loss"
    )
    if current_trace() is None and all(output._read().node is None for output in outputs):
        reasons = (
            "the loss has no history at all: it depends on no trainable Parameter, was computed inside "
            "no_grad, or by a compiled function that changes parameters (take the gradient inside that "
            "function)"
        )
    return GradientError(
        f"the loss does not depend on {name}, {target.type}; {reasons}. If that is meant, write "
        "allow_unused=True: the gradient is then zeros"
    )


def _untracked(name: str, target: Tensor) -> GradientError:
    return GradientError(
        f"{name}, {target.type}, has no history: eagerly, only what depends on a trainable Parameter or on "
        "an argument of tw.grad is recorded. Write loss, gradient = tw.value_and_grad(f)(x), or x = "
        "tw.Parameter(x)"
    )


# ---- gradients of functions --------------------------------------------------------------------------------


class _Argument:
    """Owner of the history of one argument of `grad`."""


def value_and_grad(
    f: Callable[..., Any], wrt: Any = None, *, allow_unused: bool = False, has_aux: bool = False
) -> Callable[..., Any]:
    """A function that gives `(f(...), gradient)`.

    `wrt`: None for every argument, a position, a parameter's name, or a tuple of them. With one name or
    position, or where `f` takes one argument, the gradient is bare, else it is a tuple. An argument may be a
    nest of tensors, or a module (the gradient is then a dict by parameter name). With `has_aux`, `f` gives
    `(loss, auxiliary)` and the result is `((loss, auxiliary), gradient)`. Raises `GradientError`, as
    `gradient` does."""
    if not callable(f):
        raise ArgumentError(
            f"grad takes a function, received {type(f).__name__}; for a loss that is computed already write "
            "tw.gradient(loss, wrt=...)"
        )

    @functools.wraps(f, updated=())
    def run(*args: Any, **kwargs: Any) -> Any:
        chosen = _choose(f, wrt, args, kwargs)
        call = _Call(args, kwargs)
        for place in chosen.places:
            call.track(place, chosen.label(place))
        with recording(True):
            result = f(*call.args, **call.kwargs)
            if has_aux and not (isinstance(result, tuple) and len(result) == 2):
                raise GradientError(
                    "with has_aux=True the function must return (loss, auxiliary), received "
                    f"{type(result).__name__}"
                )
            loss = result[0] if has_aux else result
            _check_loss(loss, f"the result of {getattr(f, '__name__', 'the function')}")
            gradients = call.gradients([loss], None, allow_unused)
        found = [gradients[place] for place in chosen.places]
        return call.settle((result, found[0] if chosen.bare else tuple(found)))

    return run


def grad(
    f: Callable[..., Any], wrt: Any = None, *, allow_unused: bool = False, has_aux: bool = False
) -> Callable[..., Any]:
    """A function that gives the gradient of `f`, or `(gradient, auxiliary)` with `has_aux`. See
    `value_and_grad`.

    >>> import thalweg as tw
    >>> f = lambda x, y, z: 2 * x**2 + y**3 + z
    >>> [float(g) for g in tw.grad(f)(1.0, 2.0, 3.0)]
    [4.0, 12.0, 1.0]
    >>> float(tw.grad(f, wrt="x")(1.0, 2.0, 3.0))
    4.0
    """
    both = value_and_grad(f, wrt, allow_unused=allow_unused, has_aux=has_aux)

    @functools.wraps(f, updated=())
    def run(*args: Any, **kwargs: Any) -> Any:
        value, found = both(*args, **kwargs)
        return (found, value[1]) if has_aux else found

    return run


def vjp(f: Callable[..., Any], *args: Any) -> tuple[Any, Callable[..., tuple[Any, ...]]]:
    """`f(*args)`, and a function from a cotangent of the result to the gradients of all arguments, as a
    tuple.

    The cotangent has the nest, shapes and dtypes of the result. The function takes `allow_unused=True` like
    `grad`."""
    call = _Call(args, {})
    for position in range(len(args)):
        call.track(position, f"argument {position}")
    with recording(True):
        result = f(*call.args)

    def pull(cotangent: Any, *, allow_unused: bool = False) -> tuple[Any, ...]:
        outputs, cotangents = _match(result, cotangent)
        with recording(True):
            gradients = call.gradients(outputs, cotangents, allow_unused)
        return call.settle(tuple(gradients[position] for position in range(len(args))))  # type: ignore[no-any-return]

    return call.settle(result), pull


def _match(result: Any, cotangent: Any) -> tuple[list[Tensor], list[Tensor]]:
    """Leaves of a result and of its cotangent, floating-point ones only; a leaf's cotangent may be a list of
    numbers.
    """
    outputs: list[Tensor] = []
    cotangents: list[Tensor] = []

    def visit(output: Any, given: Any, path: str) -> None:
        if nest.is_container(output):
            keys = nest.keys_of(output)
            fits = nest.is_container(given) and isinstance(given, dict) == isinstance(output, dict)
            if not fits or set(nest.keys_of(given)) != set(keys):
                raise GradientError(
                    f"result{path} of the function is {_outline(output)}, its cotangent {_outline(given)}; "
                    "they must be the same nest"
                )
            parts = dict(zip(nest.keys_of(given), nest.items_of(given), strict=True))
            for key, item in zip(keys, nest.items_of(output), strict=True):
                visit(item, parts[key], f"{path}[{key!r}]")
            return
        if not isinstance(output, Tensor):
            raise GradientError(f"result{path} of the function is not a tensor but {type(output).__name__}")
        if not output.dtype.is_floating:
            return
        like = given if isinstance(given, Tensor) else _constant(as_array(given, output.dtype))
        if like.type != output.type:
            raise GradientError(
                f"result{path} is {output.type}, its cotangent {like.type}; they must be equal"
            )
        outputs.append(output)
        cotangents.append(like)

    visit(result, cotangent, "")
    return outputs, cotangents


def _outline(item: Any) -> str:
    """A nest's kind and keys in words."""
    if isinstance(item, dict):
        return f"a dict with the keys {', '.join(map(repr, item))}"
    if isinstance(item, (list, tuple)):
        return f"a {type(item).__name__} of {len(item)}"
    return f"a {type(item).__name__}"


def _constant(array: Any) -> Tensor:
    from thalweg.ops.sources import constant

    return constant(array)  # type: ignore[no-any-return]


class _Choice:
    """Which arguments of a call are differentiated: positions (int) and keywords (str)."""

    def __init__(self, places: list[int | str], names: dict[int, str], bare: bool) -> None:
        self.places = places
        self.names = names
        self.bare = bare

    def label(self, place: int | str) -> str:
        name = place if isinstance(place, str) else self.names.get(place)
        return f"argument {name!r}" if name else f"argument {place}"


def _choose(f: Callable[..., Any], wrt: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> _Choice:
    try:
        parameters = list(inspect.signature(f).parameters.values())
    except (TypeError, ValueError):  # a builtin without a signature
        parameters = []
    ordered = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    names = dict(enumerate(ordered[: len(args)]))
    known = {name: position for position, name in names.items()}
    if wrt is None:
        keyword_only = {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}
        places: list[int | str] = [*range(len(args)), *(key for key in kwargs if key not in keyword_only)]
        if not places:
            raise GradientError(
                "the function was called without arguments: there is nothing to differentiate"
            )
        return _Choice(places, names, len(places) == 1)
    wanted = wrt if isinstance(wrt, (tuple, list)) else (wrt,)
    places = []
    for item in wanted:
        if isinstance(item, str):
            place: int | str = known.get(item, item)
            if isinstance(place, str) and place not in kwargs:
                listed = ", ".join([*map(repr, known), *map(repr, kwargs)]) or "none"
                raise GradientError(
                    f"wrt={item!r} is not an argument of this call; its arguments are {listed}"
                )
        elif isinstance(item, int) and not isinstance(item, bool):
            if not -len(args) <= item < len(args):
                raise GradientError(
                    f"wrt={item} is not a position of this call, which has {len(args)} positional arguments"
                )
            place = item % len(args)
        else:
            raise GradientError(
                f"wrt of grad takes positions and names of arguments, received {item!r:.60} of type "
                f"{type(item).__name__}; for tensors and modules write tw.gradient(loss, wrt=...)"
            )
        if place in places:
            raise GradientError(f"wrt={wrt!r} names one argument twice")
        places.append(place)
    return _Choice(places, names, not isinstance(wrt, (tuple, list)))


class _Call:
    """One call of a differentiated function: its arguments with a beginning of history for each tensor in
    them.
    """

    def __init__(self, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        self.args = list(args)
        self.kwargs = dict(kwargs)
        self.owner = _Argument()
        self.targets: list[Tensor] = []
        self.names: list[str] = []
        self.nests: dict[int | str, Any] = {}  # place -> nest of positions in `targets`

    def track(self, place: int | str, label: str) -> None:
        """Differentiate with respect to the argument at this place."""
        store: Any = self.kwargs if isinstance(place, str) else self.args
        given = store[place]
        if _is_module(given):
            parameters = {name: p for name, p in given.named_parameters() if p.trainable}
            self.nests[place] = {name: self._add(p, f"{label}.{name}") for name, p in parameters.items()}
            return
        tracked = nest.map_nest(lambda leaf, path: self._track_leaf(leaf, label + path), given)
        store[place] = tracked
        self.nests[place] = nest.map_nest(lambda leaf, path: self._add(leaf, label + path), tracked)

    def _add(self, tensor: Tensor, label: str) -> int:
        self.targets.append(tensor)
        self.names.append(label)
        return len(self.targets) - 1

    def _track_leaf(self, leaf: Any, label: str) -> Tensor:
        if isinstance(leaf, Tensor):
            tensor = leaf
        elif isinstance(leaf, (bool, int, float, np.ndarray, np.generic)) or hasattr(leaf, "__array__"):
            tensor = _constant(as_array(leaf))
        else:
            raise GradientError(
                f"{label} is {leaf!r:.60} of type {type(leaf).__name__}, which has no gradient; choose what "
                "to "
                'differentiate by wrt, for example tw.grad(f, wrt=("x", "y")) or wrt=0'
            )
        if not tensor.dtype.is_floating:
            more = (
                f"; write {leaf}.0"
                if isinstance(leaf, int) and not isinstance(leaf, bool)
                else "; write x.float()"
            )
            raise GradientError(
                f"{label} has the element type {tensor.dtype}: only floating-point tensors have a "
                f"gradient{more}, "
                'or choose others by wrt, for example tw.grad(f, wrt="x")'
            )
        return _beginning(tensor, self.owner, label)

    def gradients(
        self, outputs: Sequence[Tensor], cotangents: Sequence[Tensor] | None, allow_unused: bool
    ) -> dict[int | str, Any]:
        """For each tracked place the nest of gradients."""
        results = (
            _gradients(outputs, cotangents, self.targets, self.names, allow_unused) if self.targets else []
        )
        return {
            place: nest.map_nest(lambda index, _: results[index], found)
            for place, found in self.nests.items()
        }

    def settle(self, results: Any) -> Any:
        """Eager results without the history that only this call needed, so that it can be freed."""
        trace = current_trace()
        if trace is not None:
            if not eager.mode.recording:
                trace.unrecorded.extend(
                    leaf._read() for leaf in nest.leaves(results) if isinstance(leaf, Tensor)
                )
            return results
        return nest.map_nest(
            lambda leaf, _: self._settled(leaf) if isinstance(leaf, Tensor) else leaf, results
        )

    def _settled(self, tensor: Tensor) -> Tensor:
        if isinstance(tensor, Holder) or tensor._value.node is None:
            return tensor
        if eager.mode.recording and any(
            isinstance(node.op, Source) and node.op.owner is not self.owner for node in history(tensor._value)
        ):
            return tensor
        return wrap(Value(tensor.type, None, 0, tensor._value.data), None)


def _beginning(tensor: Tensor, owner: _Argument, label: str) -> Tensor:
    """An identity of the tensor, so that the same tensor given twice has two partial derivatives."""
    trace = current_trace()
    value = tensor._read()
    op = Cast(value.dtype)
    if trace is not None:
        (inner,) = trace.builder.apply(op, [value])
        return wrap(inner, trace)
    if value.node is None:
        return wrap(eager.source_value(value.data, owner, label), None)
    types: tuple[Type, ...] = (value.type,)
    return wrap(HistoryNode(op, (value,), types, (value.data,), *location()).outputs[0], None)
