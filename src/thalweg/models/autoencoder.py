"""A convolutional autoencoder: strided convolutions down to a short code, transposed convolutions back up."""

from __future__ import annotations

from typing import Any

from thalweg import nn


class Autoencoder(nn.Module):
    """[B, channels, 28, 28] to a code [B, code_size] and back to values between 0 and 1 of the input's
    shape.
    """

    def __init__(self, channels: int = 1, code_size: int = 32, width: int = 16) -> None:
        self.width = width
        self.encoder = nn.Sequential(
            nn.Conv2d(channels, width, 3, stride=2, padding=1),  # [B, width, 14, 14]
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),  # [B, 2 width, 7, 7]
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(2 * width * 7 * 7, code_size),
        )
        self.expand = nn.Linear(code_size, 2 * width * 7 * 7)
        self.decoder = nn.Sequential(
            nn.ConvTranspose2d(
                2 * width, width, 3, stride=2, padding=1, output_padding=1
            ),  # [B, width, 14, 14]
            nn.ReLU(),
            nn.ConvTranspose2d(
                width, channels, 3, stride=2, padding=1, output_padding=1
            ),  # [B, channels, 28, 28]
            nn.Sigmoid(),
        )

    def encode(self, x: Any) -> Any:  # [B, channels, 28, 28]
        return self.encoder(x)  # [B, code_size]

    def decode(self, code: Any) -> Any:  # [B, code_size]
        x = self.expand(code).relu().reshape(-1, 2 * self.width, 7, 7)
        return self.decoder(x)  # [B, channels, 28, 28]

    def forward(self, x: Any) -> Any:
        return self.decode(self.encode(x))
