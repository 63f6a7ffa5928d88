"""ResNet and ResNeXt in plain PyTorch, as torchvision names and pads them.

What the tests and `scripts/benchmark.py` compare this package with.
"""

import re

import torch
from torch import nn


class SqueezeExcite(nn.Module):
    """Weights channels by what two convolutions make of their means."""

    def __init__(self, channels):
        """Takes the number of channels."""
        super().__init__()
        less = max(8, channels // 16)
        self.fc1 = nn.Conv2d(channels, less, 1)
        self.fc2 = nn.Conv2d(less, channels, 1)

    def forward(self, x):
        """From feature maps to feature maps, (batch, channels, h, w)."""
        y = self.fc1(x.mean((2, 3), keepdim=True)).relu()
        return x * self.fc2(y).sigmoid()


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
        # The convolution behind which averages stride in its place, or none.
        self.averaged = 0
        for i, (filters, kernel, step, parts) in enumerate(convs, 1):
            space = dilation if kernel == 3 else 1
            if row.anti_aliased and step > 1:
                self.averaged, step = i, 1
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
        self.se = SqueezeExcite(out) if row.squeeze_excite else nn.Identity()
        self.downsample = None
        if stride > 1 or channels != out:
            layers, step = [], stride
            if row.average_shortcut:
                pool = nn.AvgPool2d(2, 2, 0, True, False)  # rounds up
                layers, step = [pool if stride > 1 else nn.Identity()], 1
            layers.append(nn.Conv2d(channels, out, 1, step, bias=False))
            layers.append(nn.BatchNorm2d(out))
            self.downsample = nn.Sequential(*layers)

    def forward(self, x):
        """From feature maps to feature maps, (batch, channels, h, w)."""
        y = x
        for i in range(1, self.depth + 1):
            y = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(y))
            y = y.relu() if i < self.depth else self.se(y)
            if i == self.averaged:
                y = nn.functional.avg_pool2d(y, 2)  # rounds down
        return (
            y + (x if self.downsample is None else self.downsample(x))
        ).relu()


def stem(row):
    """Returns the first convolution or three, without the last norm."""
    if row.stem == "cifar":
        return nn.Conv2d(3, row.planes, 3, 1, 1, bias=False)
    if row.stem not in ("deep", "tiered"):
        return nn.Conv2d(3, row.planes, 7, 2, 3, bias=False)
    width = row.stem_width
    first = width if row.stem == "deep" else 3 * width // 4
    return nn.Sequential(
        nn.Conv2d(3, first, 3, 2, 1, bias=False),
        nn.BatchNorm2d(first),
        nn.ReLU(),
        nn.Conv2d(first, width, 3, 1, 1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, 1, 1, bias=False),
    )


def pool(row):
    """Returns what follows the first convolutions."""
    if row.stem == "cifar":
        return nn.Identity()
    if row.anti_aliased:
        return nn.AvgPool2d(2)
    if row.stem == "legacy":
        return nn.MaxPool2d(3, 2, ceil_mode=True)
    return nn.MaxPool2d(3, 2, 1)


class Net(nn.Module):
    """The network of a row of the registry."""

    def __init__(self, row, groups, classes, output_stride=None):
        """Takes a row of the registry, and what may differ from it.

        An `output_stride` is for rows without averages.
        """
        super().__init__()
        cifar = row.stem == "cifar"
        deep = row.stem in ("deep", "tiered")
        channels = 2 * row.stem_width if deep else row.planes
        self.conv1 = stem(row)
        self.bn1 = nn.BatchNorm2d(channels)
        self.pool = pool(row)
        reached, dilation = 1 if cifar else 4, 1
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
                        row.planes * 2**stage,
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
        elif re.search(
            r"(bn\d|downsample\.[12]|conv1\.[14])\.(weight|running_var)", key
        ):
            value.uniform_(0.5, 1.5, generator=random)
        elif value.ndim == 1:
            value.normal_(0, 0.1, generator=random)
    return net
