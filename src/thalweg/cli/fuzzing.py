"""`thalweg fuzz`: random programs, compiled, against the NumPy references."""

from __future__ import annotations

import argparse
from pathlib import Path

from thalweg import fuzz as fuzzing
from thalweg.fuzz import sanitized


def fuzz(options: argparse.Namespace) -> int:
    """The command. Its exit code is 1 where a program was wrong."""
    if options.replay is not None:
        return _replay(options.replay)
    going = fuzzing.for_minutes(options.minutes)
    if options.count is not None:
        going = lambda done: done < options.count  # noqa: E731
    failures = 0
    if options.sanitize:
        variables = sanitized.environment()
        done = 0
        while going(done):
            found = sanitized.run_group(options.seed + done, sanitized.GROUP, variables)
            done += sanitized.GROUP
            if found is not None:
                failures += 1
                print(f"seed {found[0]}, under the sanitizers:\n{found[1]}", flush=True)
    else:
        done = 0
        for made, wrong in fuzzing.fuzz(options.seed, going):
            done = made
            failures += len(wrong)
            for failure in wrong:
                path = fuzzing.save_failure(failure, Path(options.out))
                print(f"{failure}\nkept: thalweg fuzz --replay {path}", flush=True)
    last = options.seed + done - 1
    print(f"{done:,} programs (seeds {options.seed} to {last}), {failures} wrong")
    return int(failures > 0)


def _replay(path: str) -> int:
    case = fuzzing.read_case(path)
    print(case.graph.text(limit=4096))
    wrong = fuzzing.trial(case)
    print(wrong or "this program is right")
    return int(wrong is not None)
