"""ResNet and ResNeXt in plain PyTorch, as torchvision names and pads them.

Run as a script it computes the golden logits anew:

    python tests/torch_reference.py
"""

import json
import sys

import numpy as np
import torch
from reference import GOLDEN, SIZES, draw, images, structure
from torch import nn

from keras_resnext.registry import ARCHITECTURES


class Block(nn.Module):
    """A basic or bottleneck block."""

    def __init__(self, channels, planes, row, groups, stride, dilation):
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
        x = self.pool(self.bn1(self.conv1(x)).relu())
        for stage in range(1, self.stages + 1):
            x = getattr(self, f"layer{stage}")(x)
        return self.fc(x.mean((2, 3)))


def logits(name, weights, **options):
    """Returns PyTorch's logits, one array for each size of image."""
    row, groups = structure(name)
    net = Net(row, groups, len(weights["fc.bias"]), **options).eval()
    state = {k: torch.from_numpy(v) for k, v in weights.items()}
    report = net.load_state_dict(state, strict=False)
    assert not report.unexpected_keys
    assert all("num_batches" in key for key in report.missing_keys)
    with torch.inference_mode():
        return [
            net(torch.from_numpy(images(size)).permute(0, 3, 1, 2)).numpy()
            for size in SIZES
        ]


def main():
    """Writes the golden logits of every architecture."""
    for name in sys.argv[1:] or ARCHITECTURES:
        stored = {
            "made by": "python tests/torch_reference.py",
            "torch": torch.__version__,
            "numpy": np.__version__,
            "logits": {
                f"{size[0]}x{size[1]}": [
                    [float(f"{v:.8g}") for v in row] for row in array
                ]
                for size, array in zip(
                    SIZES, logits(name, draw(name)), strict=True
                )
            },
        }
        path = GOLDEN / f"{name}.json"
        path.write_text(json.dumps(stored, indent=1) + "\n")
        print(path.name, max(map(abs, stored["logits"]["64x64"][0])))


if __name__ == "__main__":
    main()
