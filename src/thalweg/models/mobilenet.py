"""MobileNetV1 (Howard et al., 2017) and V2 (Sandler et al., 2018): networks of depthwise convolutions.

In: images [B, in_channels, H, W]. Out: scores [B, num_classes]. The names of V2's layers are torchvision's
(`features.1.conv.0.0`, `classifier.1`), so its checkpoints load; V1 has `features` and `classifier` alike.
"""

from __future__ import annotations

from typing import Any

from thalweg import nn
from thalweg.errors import ArgumentError

# MobileNetV1, table 1: output channels and stride of each separable convolution.
_V1 = (
    (64, 1),
    (128, 2),
    (128, 1),
    (256, 2),
    (256, 1),
    (512, 2),
    *((512, 1),) * 5,
    (1024, 2),
    (1024, 1),
)
# MobileNetV2, table 2: expansion, output channels, number of blocks, stride of the first of them.
_V2 = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def _convolution(
    in_channels: int, out_channels: int, kernel: int, activation: nn.Module, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    """Convolution, batch norm, activation; the size stays where `stride` is 1."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(out_channels),
        activation,
    )


class MobileNetV1(nn.Module):
    """13 separable convolutions: each channel by itself with 3x3 weights, then all channels with 1x1 weights.

    `width` multiplies all numbers of channels. [B, in_channels, H, W] to [B, num_classes].
    """

    def __init__(
        self, num_classes: int = 1000, in_channels: int = 3, width: float = 1.0, dropout: float = 0.2
    ) -> None:
        channels = _scaled(32, width)
        self.features = nn.Sequential(_convolution(in_channels, channels, 3, nn.ReLU(), stride=2))
        for wanted, stride in _V1:
            outputs = _scaled(wanted, width)
            self.features.append(
                nn.Sequential(
                    _convolution(channels, channels, 3, nn.ReLU(), stride, groups=channels),
                    _convolution(channels, outputs, 1, nn.ReLU()),
                )
            )
            channels = outputs
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(channels, num_classes))
        self.apply(_initialise)

    def forward(self, x: Any) -> Any:  # [B, in_channels, H, W]
        x = self.features(x)  # [B, 1024 * width, H / 32, W / 32]
        return self.classifier(x.mean((2, 3)))  # [B, num_classes]


class InvertedResidual(nn.Module):
    """1x1 to `expansion` times as many channels, 3x3 on each channel by itself, 1x1 back without activation.

    The input is added where shapes allow. [B, in, H, W] to [B, out, H / stride, W / stride].
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int) -> None:
        inner = in_channels * expansion
        self.conv = nn.Sequential()
        if expansion != 1:
            self.conv.append(_convolution(in_channels, inner, 1, nn.ReLU6()))
        self.conv.append(_convolution(inner, inner, 3, nn.ReLU6(), stride, groups=inner))
        self.conv.append(nn.Conv2d(inner, out_channels, 1, bias=False))
        self.conv.append(nn.BatchNorm2d(out_channels))
        self.adds_input = stride == 1 and in_channels == out_channels

    def forward(self, x: Any) -> Any:
        return x + self.conv(x) if self.adds_input else self.conv(x)


class MobileNetV2(nn.Module):
    """17 inverted residual blocks. `width` multiplies all numbers of channels, rounded to multiples of 8.

    [B, in_channels, H, W] to [B, num_classes].
    """

    def __init__(
        self, num_classes: int = 1000, in_channels: int = 3, width: float = 1.0, dropout: float = 0.2
    ) -> None:
        channels = _scaled(32, width)
        self.features = nn.Sequential(_convolution(in_channels, channels, 3, nn.ReLU6(), stride=2))
        for expansion, wanted, count, first_stride in _V2:
            outputs = _scaled(wanted, width)
            for number in range(count):
                stride = 1 if number else first_stride
                self.features.append(InvertedResidual(channels, outputs, stride, expansion))
                channels = outputs
        last = _scaled(1280, max(1.0, width))
        self.features.append(_convolution(channels, last, 1, nn.ReLU6()))
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(last, num_classes))
        self.apply(_initialise)

    def forward(self, x: Any) -> Any:  # [B, in_channels, H, W]
        x = self.features(x)  # [B, 1280, H / 32, W / 32]
        return self.classifier(x.mean((2, 3)))  # [B, num_classes]


def _scaled(channels: int, width: float) -> int:
    """`channels` times `width`, to the nearest multiple of 8 that is not less than 0.9 of it."""
    if not width > 0:
        raise ArgumentError(f"MobileNet: width must be above 0, received {width!r}")
    exact = channels * width
    rounded = max(8, int(exact + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * exact else rounded + 8


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out")
    elif isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, 0.0, 0.01)
        nn.init.zeros_(module.bias)


def mobilenet_v1(num_classes: int = 1000, in_channels: int = 3) -> MobileNetV1:
    """MobileNetV1 at full width: 4,231,976 parameters for 1000 classes."""
    return MobileNetV1(num_classes, in_channels)


def mobilenet_v2(num_classes: int = 1000, in_channels: int = 3) -> MobileNetV2:
    """MobileNetV2 at full width: 3,504,872 parameters for 1000 classes."""
    return MobileNetV2(num_classes, in_channels)
