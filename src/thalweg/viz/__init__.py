"""Drawings: graphs as SVG or text, and the curves of a training run.

viz.draw(train_step.graph(x, y), "step.svg")
viz.plot(history, "curves.png")
"""

from thalweg.viz.curves import plot
from thalweg.viz.draw import draw, table

__all__ = ["draw", "plot", "table"]
