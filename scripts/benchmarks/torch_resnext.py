"""ResNet and ResNeXt in plain PyTorch, as torchvision names and pads them.

What the tests and `scripts/benchmark.py` compare this package with.
"""

import re

import torch
from torch import nn


class Block(nn.Module):
    """A basic or bottleneck block."""

    def __init__(self, channels, planes, row, groups, stride, dilation):
        """Makes the convolutions, normalisations and projection."""
        super().__init__()
        if row.block == "basic":
            out = planes
            convs = [(planes, 3, stride, 1), (planes, 3, 1, 1)]
        else:
            out = 4 * planes
            width = planes * row.width_per_group // 64 * groups
            convs = [(width, 1, 1, 1), (width, 3, stride, groups)]
            convs.append((out, 1, 1, 1))
        self.depth, self.out, inputs = len(convs), out, channels
        for i, (filters, kernel, step, parts) in enumerate(convs, 1):
            space = dilation if kernel == 3 else 1
            self.add_module(
                f"conv{i}",
                nn.Conv2d(
                    inputs,
                    filters,
                    kernel,
                    step,
                    padding=kernel // 2 * space,
                    dilation=space,
                    groups=parts,
                    bias=False,
                ),
            )
            self.add_module(f"bn{i}", nn.BatchNorm2d(filters))
            inputs = filters
        self.downsample = None
        if stride > 1 or channels != out:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels, out, 1, stride, bias=False),
                nn.BatchNorm2d(out),
            )

    def forward(self, x):
        """From feature maps to feature maps, (batch, channels, h, w)."""
        y = x
        for i in range(1, self.depth + 1):
            y = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(y))
            y = y.relu() if i < self.depth else y
        return (
            y + (x if self.downsample is None else self.downsample(x))
        ).relu()


class Net(nn.Module):
    """The network of a row of the registry."""

    def __init__(self, row, groups, classes, output_stride=None):
        """Takes a row of the registry, and what may differ from it."""
        super().__init__()
        cifar = row.stem == "cifar"
        self.conv1 = (
            nn.Conv2d(3, 64, 3, 1, 1, bias=False)
            if cifar
            else nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        )
        self.bn1 = nn.BatchNorm2d(64)
        self.pool = nn.Identity() if cifar else nn.MaxPool2d(3, 2, 1)
        channels, reached, dilation = 64, 1 if cifar else 4, 1
        self.stages = len(row.depths)
        for stage, depth in enumerate(row.depths):
            stride, first = (2 if stage else 1), dilation
            if stride == 2 and reached == output_stride:
                stride, dilation = 1, 2 * dilation
            reached *= stride
            blocks = []
            for i in range(depth):
                blocks.append(
                    Block(
                        channels,
                        64 * 2**stage,
                        row,
                        groups,
                        1 if i else stride,
                        dilation if i else first,
                    )
                )
                channels = blocks[-1].out
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        self.fc = nn.Linear(channels, classes)

    def forward(self, x):
        """From images (batch, 3, height, width) to logits."""
        x = self.pool(self.bn1(self.conv1(x)).relu())
        for stage in range(1, self.stages + 1):
            x = getattr(self, f"layer{stage}")(x)
        return self.fc(x.mean((2, 3)))


def randomise(net, seed=0):
    """Draws weights and statistics that keep the logits finite and varied.

    Every statistic of the normalisations differs from a fresh network's, so
    that two of them that were swapped would be noticed.
    """
    random = torch.Generator().manual_seed(seed)
    for key, value in net.state_dict().items():
        if value.ndim > 1:
            std = (2 / value[0].numel()) ** 0.5
            value.normal_(0, std, generator=random)
        elif re.search(r"(bn\d|downsample.1)\.(weight|running_var)", key):
            value.uniform_(0.5, 1.5, generator=random)
        elif value.ndim == 1:
            value.normal_(0, 0.1, generator=random)
    return net
