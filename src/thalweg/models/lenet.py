"""LeNet-5 for 28x28 images of one channel (after LeCun et al., 1998): 61,706 parameters."""

from __future__ import annotations

from typing import Any

from thalweg import nn


class LeNet(nn.Module):
    """Two convolutions with max pooling, then three linear layers: [B, 1, 28, 28] to scores [B, 10]."""

    def __init__(self) -> None:
        self.conv1 = nn.Conv2d(1, 6, 5, padding=2)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1, self.fc2, self.fc3 = nn.Linear(400, 120), nn.Linear(120, 84), nn.Linear(84, 10)

    def forward(self, x: Any) -> Any:  # [B, 1, 28, 28]
        x = nn.functional.max_pool2d(self.conv1(x).relu(), 2)  # [B, 6, 14, 14]
        x = nn.functional.max_pool2d(self.conv2(x).relu(), 2)  # [B, 16, 5, 5]
        return self.fc3(self.fc2(self.fc1(x.flatten(1)).relu()).relu())
