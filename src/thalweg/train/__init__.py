"""Training: the loop, metrics, history and checkpoints.

history = train.fit(model, loader, loss=cross_entropy, optimizer=opt, epochs=3, metrics=[train.accuracy])
train.evaluate(model, test_loader, metrics=[train.accuracy])
"""

from thalweg.train.checkpoint import Checkpoint, load_checkpoint, read_checkpoint, save_checkpoint
from thalweg.train.history import History
from thalweg.train.loop import evaluate, fit
from thalweg.train.metrics import Average, accuracy
from thalweg.train.receipt import Receipt, Recorder, Replay, read_receipt

__all__ = [
    "Average",
    "Checkpoint",
    "History",
    "Receipt",
    "Recorder",
    "Replay",
    "accuracy",
    "evaluate",
    "fit",
    "load_checkpoint",
    "read_checkpoint",
    "read_receipt",
    "save_checkpoint",
]
