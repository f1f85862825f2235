"""`thalweg bench`: the speed of this machine with Thalweg, against its limit and other frameworks."""

from __future__ import annotations

import argparse

from thalweg.errors import ArgumentError


def bench(options: argparse.Namespace) -> int:
    """The command: prints a line per case and number of threads, and a summary of the random networks."""
    from thalweg.bench.cases import CASES
    from thalweg.bench.measuring import Row, compare, markdown, random_summary
    from thalweg.bench.peers import installed
    from thalweg.io.files import atomic_write

    chosen = [c for c in CASES if not options.names or any(word in c.name for word in options.names)]
    if not chosen:
        raise ArgumentError(f"no case's name contains {' or '.join(map(repr, options.names))}; see --list")
    if options.list:
        print("\n".join(case.name for case in chosen))
        return 0
    peers = installed() if options.peers is None else options.peers
    rows: list[Row] = []
    for case in chosen:
        for threads in options.threads if case.threaded else [1]:
            rows.append(compare(case, threads, options.processes, peers))
            print(rows[-1].text(), flush=True)
    for line in random_summary(rows):
        print(line)
    if options.markdown:
        atomic_write(options.markdown, markdown(rows).encode())
    return 0
