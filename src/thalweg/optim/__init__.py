"""Optimisers, gradient clipping and learning-rate schedules, with PyTorch's names, arguments and formulas."""

from thalweg.optim.adafactor import Adafactor
from thalweg.optim.adagrad import Adagrad
from thalweg.optim.adam import Adam, AdamW
from thalweg.optim.averaging import ExponentialMovingAverage
from thalweg.optim.clipping import clip_by_norm, clip_by_value, global_norm
from thalweg.optim.lion import Lion
from thalweg.optim.muon import Muon
from thalweg.optim.optimizer import Optimizer, ParameterGroup
from thalweg.optim.rmsprop import RMSprop
from thalweg.optim.scaler import GradScaler
from thalweg.optim.schedules import (
    ChainedScheduler,
    ConstantLR,
    CosineAnnealingLR,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    MultiStepLR,
    OneCycleLR,
    PolynomialLR,
    Schedule,
    SequentialLR,
    StepLR,
)
from thalweg.optim.sgd import SGD

__all__ = [
    "SGD",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamW",
    "ChainedScheduler",
    "ConstantLR",
    "CosineAnnealingLR",
    "ExponentialLR",
    "ExponentialMovingAverage",
    "GradScaler",
    "LambdaLR",
    "LinearLR",
    "Lion",
    "MultiStepLR",
    "Muon",
    "OneCycleLR",
    "Optimizer",
    "ParameterGroup",
    "PolynomialLR",
    "RMSprop",
    "Schedule",
    "SequentialLR",
    "StepLR",
    "clip_by_norm",
    "clip_by_value",
    "global_norm",
]
