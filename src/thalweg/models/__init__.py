"""Networks to use and to read: one file each, written like a user's code."""

from thalweg.models.autoencoder import Autoencoder
from thalweg.models.lenet import LeNet
from thalweg.models.lstm import CharLSTM, LSTMClassifier
from thalweg.models.mlp import MLP
from thalweg.models.mobilenet import MobileNetV1, MobileNetV2, mobilenet_v1, mobilenet_v2
from thalweg.models.pretrained import PretrainedModel, from_pretrained
from thalweg.models.resnet import (
    BasicBlock,
    Bottleneck,
    ResNet,
    resnet18,
    resnet20,
    resnet34,
    resnet50,
    small_resnet,
)
from thalweg.models.vit import ViTForImageClassification, ViTModel, small_vit
from thalweg.models.writing import write

__all__ = [
    "MLP",
    "Autoencoder",
    "BasicBlock",
    "Bottleneck",
    "CharLSTM",
    "LSTMClassifier",
    "LeNet",
    "MobileNetV1",
    "MobileNetV2",
    "PretrainedModel",
    "ResNet",
    "ViTForImageClassification",
    "ViTModel",
    "from_pretrained",
    "mobilenet_v1",
    "mobilenet_v2",
    "resnet18",
    "resnet20",
    "resnet34",
    "resnet50",
    "small_resnet",
    "small_vit",
    "write",
]
