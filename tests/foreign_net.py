"""A convolutional teacher that is not ours: residual, depthwise and squeeze-excitation parts."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class Squeeze(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(channels, 6, 1), nn.Conv2d(6, channels, 1)

    def forward(self, x):
        return x * self.up(F.relu(self.down(F.adaptive_avg_pool2d(x, 1)))).sigmoid()


class Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.a = nn.Conv2d(channels, 10, 3, padding=1, groups=2, bias=False)
        self.b = nn.BatchNorm2d(10)
        self.c = nn.Conv2d(10, channels, 3, padding=1)

    def forward(self, x):
        y = self.c(F.relu6(self.b(self.a(x)), inplace=True))
        y += x
        return F.relu(y)


class Inverted(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = 2 * channels
        self.chain = nn.Sequential(
            nn.Conv2d(channels, inner, 1), nn.Hardswish(inplace=True),
            nn.Conv2d(inner, inner, 3, padding=1, groups=inner), nn.BatchNorm2d(inner, eps=1e-3),
            nn.SiLU(), Squeeze(inner), nn.Conv2d(inner, channels, 1),
        )  # fmt: skip

    def forward(self, x):
        return x + self.chain(x)


class Own(nn.Module):
    def __init__(self, classes: int = 3, planes: int = 1) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(planes, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.first, self.second = Residual(8), Residual(8)
        self.down = nn.Conv2d(8, 12, 3, stride=2, padding=1)
        self.third, self.side = Inverted(12), nn.Conv2d(12, 8, 1)
        self.drop, self.head = nn.Dropout(0.2), nn.Linear(20, classes)

    def forward(self, x):
        x = self.second(self.first(self.stem(x)))
        x = self.third(F.relu(self.down(x)))
        x = torch.cat([x, F.gelu(self.side(x))], dim=1)
        return self.head(self.drop(x.mean(dim=(2, 3)).view(x.size(0), -1)))


def build(classes: int = 3, planes: int = 1) -> nn.Module:
    torch.manual_seed(0)
    network = Own(classes, planes)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return network.eval()
