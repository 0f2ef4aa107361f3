"""The four reference structures of MLPerf Tiny, in torch, from their published descriptions.

Banbury et al., MLPerf Tiny Benchmark (2106.07597), and the training code in
github.com/mlcommons/tiny. The published counts are met when the multiply-accumulates of
convolutions and matrix products alone are counted: no additions, biases, norms or pools.
"""

from __future__ import annotations

from torch import Tensor, nn


def _conv(cin: int, cout: int, kernel: int | tuple[int, int], stride: int = 1, *,
          padding: tuple[int, int] | None = None,
          group: int = 1, relu: bool = True) -> nn.Sequential:  # fmt: skip
    sides = (kernel, kernel) if isinstance(kernel, int) else kernel
    padding = padding or (sides[0] // 2, sides[1] // 2)
    layers: list[nn.Module] = [
        nn.Conv2d(cin, cout, sides, stride, padding, groups=group), nn.BatchNorm2d(cout)
    ]  # fmt: skip
    return nn.Sequential(*layers, *([nn.ReLU()] if relu else []))


def _separable(cin: int, cout: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(_conv(cin, cin, 3, stride, group=cin), _conv(cin, cout, 1))


def _head(channels: int, classes: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)]


def ds_cnn() -> nn.Module:
    """Keyword spotting: 49 x 10 coefficients, 64 channels, 12 words."""
    # The reference pads 4 rows above and 5 below; 5 on either side give the same 25 x 5 positions.
    stem = _conv(1, 64, (10, 4), 2, padding=(5, 1))
    return nn.Sequential(stem, *(_separable(64, 64) for _ in range(4)), *_head(64, 12))


def mobilenet() -> nn.Module:
    """Visual wake words: MobileNet v1 of a quarter's width over 96 x 96 pixels, 2 classes."""
    layers: list[nn.Module] = [_conv(3, 8, 3, 2)]
    plan = [(8, 16, 1), (16, 32, 2), (32, 32, 1), (32, 64, 2), (64, 64, 1), (64, 128, 2)]
    plan += [(128, 128, 1)] * 5 + [(128, 256, 2), (256, 256, 1)]
    return nn.Sequential(*layers, *(_separable(*part) for part in plan), *_head(256, 2))


class _Residual(nn.Module):
    def __init__(self, cin: int, cout: int, stride: int) -> None:
        super().__init__()
        self.first, self.second = _conv(cin, cout, 3, stride), _conv(cout, cout, 3, relu=False)
        # The reference shortens with a bare convolution: no batch norm.
        self.side = nn.Identity() if stride == 1 else nn.Conv2d(cin, cout, 1, stride)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.second(self.first(x)) + self.side(x))


def resnet8() -> nn.Module:
    """Image classification: 32 x 32 pixels, three stages of 16, 32 and 64 channels, 10 classes."""
    stages = (_Residual(16, 16, 1), _Residual(16, 32, 2), _Residual(32, 64, 2))
    return nn.Sequential(_conv(3, 16, 3), *stages, *_head(64, 10))


def autoencoder() -> nn.Module:
    """Anomaly detection: 640 values, four layers of 128, a waist of 8, and back."""
    widths = [640, 128, 128, 128, 128, 8, 128, 128, 128, 128, 640]
    layers: list[nn.Module] = []
    for cin, cout in zip(widths, widths[1:-1], strict=False):
        layers += [nn.Linear(cin, cout), nn.BatchNorm1d(cout), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(128, 640))
