"""Passes: Graph -> Graph. `prepare` makes of a traced graph what the schedule takes."""

from thalweg.passes.legalise import legalise
from thalweg.passes.pipeline import prepare
from thalweg.passes.simplify import simplify

__all__ = ["legalise", "prepare", "simplify"]
