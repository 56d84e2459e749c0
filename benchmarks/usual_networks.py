"""Networks as they are usually written, in plain torch, for those that no library of the peers has."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class Basic(nn.Module):
    """he2015, option A."""

    def __init__(self, width_in, width, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width_in, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        self.stride, self.extra = stride, width - width_in

    def forward(self, x):
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.stride != 1 or self.extra:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.extra))
        return F.relu(out + x)


class Preactivation(nn.Module):
    """he2016 and wrn: norm, ReLU, convolution; kernels as given; the change of shape by a 1x1 convolution."""

    def __init__(self, width_in, widths, kernels, stride):
        super().__init__()
        self.norms, self.convs = nn.ModuleList(), nn.ModuleList()
        strided = kernels.index(3)
        width = width_in
        for place, (width_out, kernel) in enumerate(zip(widths, kernels)):
            self.norms.append(nn.BatchNorm2d(width))
            self.convs.append(nn.Conv2d(width, width_out, kernel, stride if place == strided else 1, kernel // 2, bias=False))
            width = width_out
        self.shortcut = nn.Conv2d(width_in, width, 1, stride, bias=False) if stride != 1 or width_in != width else None

    def forward(self, x):
        out = F.relu(self.norms[0](x))
        shortcut = x if self.shortcut is None else self.shortcut(out)
        out = self.convs[0](out)
        for norm, conv in zip(self.norms[1:], self.convs[1:]):
            out = conv(F.relu(norm(out)))
        return shortcut + out


class Dense(nn.Module):
    def __init__(self, width, growth):
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(width), nn.Conv2d(width, growth, 3, 1, 1, bias=False)

    def forward(self, x):
        return torch.cat([x, self.conv(F.relu(self.norm(x)))], 1)


class Transition(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(width), nn.Conv2d(width, width, 1, bias=False)

    def forward(self, x):
        return F.avg_pool2d(self.conv(F.relu(self.norm(x))), 2)


class Pooled(nn.Module):
    """The last norm-ReLU of pre-activation networks, and global pooling."""

    def __init__(self, width, norm=True):
        super().__init__()
        self.norm = nn.BatchNorm2d(width) if norm else None

    def forward(self, x):
        return F.adaptive_avg_pool2d(x if self.norm is None else F.relu(self.norm(x)), 1).flatten(1)


def resnet(depth):
    layers, width_in = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()], 16
    for width in (16, 32, 64):
        for index in range((depth - 2) // 6):
            layers.append(Basic(width_in, width, 2 if width > 16 and not index else 1))
            width_in = width
    return nn.Sequential(*layers, Pooled(64, norm=False), nn.Linear(64, 10))


def preactivation(units, widths, kernels, inner):
    """`inner`: the widths of a unit's convolutions in units of its output's."""
    layers, width_in = [nn.Conv2d(3, 16, 3, 1, 1, bias=False)], 16
    for stage, width in enumerate(widths):
        for index in range(units):
            layers.append(Preactivation(width_in, [width // part for part in inner], kernels, 2 if stage and not index else 1))
            width_in = width
    return nn.Sequential(*layers, Pooled(width_in), nn.Linear(width_in, 10))


def densenet(depth, growth):
    width, layers = 16, [nn.Conv2d(3, 16, 3, 1, 1, bias=False)]
    for block in range(3):
        for _ in range((depth - 4) // 3):
            layers.append(Dense(width, growth))
            width += growth
        if block < 2:
            layers.append(Transition(width))
    return nn.Sequential(*layers, Pooled(width), nn.Linear(width, 10))


def usual(name):
    """The network of the catalogue's `name`, written the usual way."""
    return {
        "resnet20": lambda: resnet(20),
        "resnet56": lambda: resnet(56),
        "resnet110": lambda: resnet(110),
        "wrn_16_8": lambda: preactivation(2, (128, 256, 512), (3, 3), (1, 1)),
        "preact_resnet164": lambda: preactivation(18, (64, 128, 256), (1, 3, 1), (4, 4, 1)),
        "densenet_40_12": lambda: densenet(40, 12),
    }[name]()
