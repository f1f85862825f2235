"""Networks to use and to read: one file each, written like a user's code."""

from thalweg.models.autoencoder import Autoencoder
from thalweg.models.lenet import LeNet
from thalweg.models.lstm import CharLSTM, LSTMClassifier
from thalweg.models.mlp import MLP
from thalweg.models.pretrained import PretrainedModel, from_pretrained
from thalweg.models.resnet import BasicBlock, ResNet, resnet18, resnet20, small_resnet

__all__ = [
    "MLP",
    "Autoencoder",
    "BasicBlock",
    "CharLSTM",
    "LSTMClassifier",
    "LeNet",
    "PretrainedModel",
    "ResNet",
    "from_pretrained",
    "resnet18",
    "resnet20",
    "small_resnet",
]
