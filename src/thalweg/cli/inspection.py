"""`thalweg graph` and `thalweg plan`: what a network is, and what will run, before anything runs."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from thalweg import optim, viz
from thalweg.cli import runs
from thalweg.config import settings
from thalweg.nn import functional
from thalweg.tensor import compile, spec


def graph(options: argparse.Namespace) -> int:
    """The command: a table on standard output, or a file."""
    function, examples = _traced(options.model, options.batch_size, options.gradient)
    found = function.graph(*examples)
    if options.output is None:
        print(viz.table(found), end="")
        return 0
    viz.draw(found, options.output)
    print(f"{options.output}: {len(found)} nodes")
    return 0


def plan(options: argparse.Namespace) -> int:
    """The command: phases, kernels, buffers, bytes and the least time; or a file."""
    function, examples = _traced(options.model, options.batch_size, not options.inference)
    found = function.plan(*examples)
    threads = options.threads or settings.threads()
    if options.memory is not None:
        fitted = found.fit(options.memory, threads)
        print(f"{options.model} with a batch of {options.batch_size} fits: {fitted}", file=sys.stderr)
        found = fitted.plan
    if options.output is not None:
        found.draw(options.output)
        print(f"{options.output}: {found.total_bytes(threads):,} bytes", file=sys.stderr)
    if options.json or options.output is None:
        print(found.json(threads) if options.json else found.text(threads))
    return 0


def _traced(name: str, batch_size: int, training: bool) -> tuple[Any, tuple[Any, ...]]:
    """The compiled training step (or forward pass) of a model, and stand-ins for its arguments."""
    model = runs.make_model(name)
    images = spec((batch_size, 1, 28, 28), "float32")
    if not training:
        model.eval()

        def forward(images: Any) -> Any:
            return model(images)

        return compile(forward), (images,)
    optimizer = optim.SGD(model.parameters(), lr=0.05, momentum=0.9)

    def training_step(images: Any, labels: Any) -> Any:
        loss = functional.cross_entropy(model(images), labels)
        optimizer.minimize(loss)
        return loss

    return compile(training_step), (images, spec((batch_size,), "int64"))
