"""Every exception class of Thalweg.

Three families tell *when* something is wrong: `ShapeError` and `DTypeError` while a graph is being built
(at the user's line), `UnsupportedError` while it is being compiled, `NumericError` while it runs. A
message says what was received, what was expected and what to write instead.
"""

from __future__ import annotations


class ThalwegError(Exception):
    """Base of all errors that Thalweg raises on purpose."""


class ShapeError(ThalwegError, ValueError):
    """Shapes, axes or sizes do not fit together."""


class DTypeError(ThalwegError, TypeError):
    """An element type is not accepted, or two of them do not mix."""


class ArgumentError(ThalwegError, ValueError):
    """An argument other than a tensor has a value that is not accepted."""


class GraphError(ThalwegError):
    """A graph breaks an invariant, or its text cannot be parsed."""


class TraceError(ThalwegError, RuntimeError):
    """A function cannot be traced as it is written: `bool(tensor)` in a trace, a tensor used after its
    trace, ..."""


class GradientError(ThalwegError, RuntimeError):
    """A gradient does not exist: the loss is not a scalar, or does not depend on what it is
    differentiated by."""


class UnsupportedError(ThalwegError, NotImplementedError):
    """A program cannot be compiled for the chosen target."""


class MemoryLimitError(ThalwegError, MemoryError):
    """A program cannot be made to need as little memory as it may take.

    `least` is the number of bytes that would do, as far as was found.
    """

    def __init__(self, message: str, least: int) -> None:
        super().__init__(message)
        self.least = least

    def __reduce__(self) -> tuple[type[MemoryLimitError], tuple[str, int]]:
        return type(self), (str(self), self.least)


class CompilerError(UnsupportedError):
    """The C compiler is missing or refused the generated code."""


class NumericError(ThalwegError, ArithmeticError):
    """A value met while a program runs is not acceptable."""


class IndexRangeError(NumericError, IndexError):
    """An index (a class label, a token, a gather index) lies outside its axis."""


class CheckError(NumericError):
    """A compiled program does not compute what the NumPy reference does."""


class ReplayError(NumericError):
    """A training run that is repeated does not give what its receipt says."""


class DataError(ThalwegError, ValueError):
    """A file or a data set is broken, missing, or cannot be written."""
