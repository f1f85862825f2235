"""Thalweg: a deep-learning framework that compiles a whole training step to one native program."""

from thalweg import ops
from thalweg.ops import *  # noqa: F403
from thalweg.tensor import *  # noqa: F403
