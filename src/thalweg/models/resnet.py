"""Residual networks (He et al., 2016): ResNet-18, 34 and 50 for ImageNet, and small ones for CIFAR and MNIST.

The names of the layers are torchvision's (`layer1.0.conv1`, `layer2.0.downsample.0`, `fc`), so its
checkpoints load.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from thalweg import nn
from thalweg.errors import ArgumentError


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norm, added to the input; [B, in, H, W] to [B, out, H / stride, W /
    stride].
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.downsample = _downsample(in_channels, out_channels, stride)

    def forward(self, x: Any) -> Any:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.bn1(self.conv1(x)).relu()
        return (self.bn2(self.conv2(x)) + shortcut).relu()


class Bottleneck(nn.Module):
    """1x1 to a quarter of the channels, 3x3 there, 1x1 back, added to the input; the stride is in the 3x3.

    [B, in, H, W] to [B, out, H / stride, W / stride].
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        inner = out_channels // 4
        self.conv1 = nn.Conv2d(in_channels, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.downsample = _downsample(in_channels, out_channels, stride)

    def forward(self, x: Any) -> Any:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.bn1(self.conv1(x)).relu()
        x = self.bn2(self.conv2(x)).relu()
        return (self.bn3(self.conv3(x)) + shortcut).relu()


def _downsample(in_channels: int, out_channels: int, stride: int) -> nn.Sequential | None:
    """What brings the input of a block to the shape of its output; None where they are equal."""
    if stride == 1 and in_channels == out_channels:
        return None
    convolution = nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels))


class ResNet(nn.Module):
    """Stages of blocks; each stage after the first halves the image. [B, in_channels, H, W] to [B,
    num_classes].

    `blocks[i]` blocks of `channels[i]` channels make stage i; `block` is the class of the blocks.
    `stem="imagenet"` begins with a 7x7 convolution of stride 2 and a max pooling, `stem="small"` with a 3x3
    convolution that keeps the size, to `channels[0]` channels unless `stem_channels` are given.
    """

    def __init__(
        self,
        blocks: Sequence[int],
        channels: Sequence[int],
        num_classes: int = 10,
        in_channels: int = 3,
        stem: str = "small",
        block: type[BasicBlock] | type[Bottleneck] = BasicBlock,
        stem_channels: int | None = None,
    ) -> None:
        if len(blocks) != len(channels) or not blocks:
            raise ArgumentError(
                f"ResNet needs as many blocks as channels, received {list(blocks)}, {list(channels)}"
            )
        if stem not in ("small", "imagenet"):
            raise ArgumentError(f'ResNet: stem is "small" or "imagenet", received {stem!r}')
        large = stem == "imagenet"
        kernel, stride, padding = (7, 2, 3) if large else (3, 1, 1)
        width = channels[0] if stem_channels is None else stem_channels
        self.conv1 = nn.Conv2d(in_channels, width, kernel, stride=stride, padding=padding, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1) if large else nn.Identity()
        self.stages = len(blocks)
        for number, (count, outputs) in enumerate(zip(blocks, channels, strict=True), 1):
            strides = [2 if number > 1 else 1, *[1] * (count - 1)]
            stage = [block(outputs if index else width, outputs, step) for index, step in enumerate(strides)]
            setattr(self, f"layer{number}", nn.Sequential(*stage))
            width = outputs
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(width, num_classes)
        self.apply(_initialise)

    def forward(self, x: Any) -> Any:  # [B, in_channels, H, W]
        x = self.maxpool(self.bn1(self.conv1(x)).relu())
        for number in range(1, self.stages + 1):
            x = getattr(self, f"layer{number}")(x)
        return self.fc(self.avgpool(x).flatten(1))  # [B, num_classes]


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def resnet18(num_classes: int = 1000, in_channels: int = 3) -> ResNet:
    """ResNet-18 for images of about 224x224: 11,689,512 parameters for 1000 classes."""
    return ResNet((2, 2, 2, 2), (64, 128, 256, 512), num_classes, in_channels, stem="imagenet")


def resnet34(num_classes: int = 1000, in_channels: int = 3) -> ResNet:
    """ResNet-34 for images of about 224x224: 21,797,672 parameters for 1000 classes."""
    return ResNet((3, 4, 6, 3), (64, 128, 256, 512), num_classes, in_channels, stem="imagenet")


def resnet50(num_classes: int = 1000, in_channels: int = 3) -> ResNet:
    """ResNet-50 for images of about 224x224: 25,557,032 parameters for 1000 classes."""
    return ResNet(
        (3, 4, 6, 3),
        (256, 512, 1024, 2048),
        num_classes,
        in_channels,
        stem="imagenet",
        block=Bottleneck,
        stem_channels=64,
    )


def resnet20(num_classes: int = 10, in_channels: int = 3) -> ResNet:
    """ResNet-20 for CIFAR's 32x32 images (He et al., 2016, section 4.2), with convolutions in its two
    shortcuts.
    """
    return ResNet((3, 3, 3), (16, 32, 64), num_classes, in_channels)


def small_resnet(num_classes: int = 10, in_channels: int = 1) -> ResNet:
    """One block in each of three stages, for MNIST's 28x28 images."""
    return ResNet((1, 1, 1), (16, 32, 64), num_classes, in_channels)
