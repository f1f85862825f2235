"""The command line: `thalweg train lenet` and its siblings. `python -m thalweg` is the same.

In: words of the command line. Out: text, files, an exit code (0: done, 1: failed, 2: wrong usage, 130:
Ctrl-C). Errors are one or a few plain lines; THALWEG_DEBUG=1 shows where they come from.
"""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import Any

from thalweg.cli.arguments import UsageError, parse
from thalweg.errors import ThalwegError

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    try:
        options = parse(sys.argv[1:] if arguments is None else arguments)
    except UsageError as error:
        print(error, file=sys.stderr)
        return 2
    except SystemExit as request:  # --help and --version
        return int(request.code or 0)
    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = _show_warning
        try:
            return int(options.command(options))
        except UsageError as error:  # options that do not go together
            print(error, file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("thalweg: interrupted", file=sys.stderr)
            return 130
        except BrokenPipeError:  # the reader of our output, such as `head`, has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        except Exception as error:
            return _report(error)


def _report(error: Exception) -> int:
    """Say what is wrong, on standard error."""
    if _debugging():
        traceback.print_exc()
        return 1
    if isinstance(error, (ThalwegError, ImportError)):
        text = str(error)
    elif isinstance(error, MemoryError):
        text = "the machine has not enough memory; a smaller --batch-size needs less"
    elif isinstance(error, OSError):
        text = f"{error.filename}: {error.strerror}" if error.filename else str(error)
    else:
        text = (
            f"{type(error).__name__}: {error}\n"
            "This is a defect of Thalweg; please report it with the output of the same command under "
            "THALWEG_DEBUG=1."
        )
    print(f"thalweg: error: {text}", file=sys.stderr)
    return 1


def _debugging() -> bool:
    from thalweg.config import settings

    try:
        return settings.debug >= 1
    except ThalwegError:  # the variable itself may be what is wrong
        return False


def _show_warning(message: Warning | str, *place: Any, **further: Any) -> None:
    """A warning as one line, without the place in the library that it comes from."""
    print(f"thalweg: note: {message}", file=sys.stderr)
