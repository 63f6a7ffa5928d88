"""The logits of plain PyTorch: see `scripts/benchmarks/torch_resnext.py`.

Run as a script it computes the golden logits anew:

    python tests/torch_reference.py
"""

import json
import pathlib
import sys

import numpy as np
import torch
from reference import GOLDEN, draw, images, sizes, structure

from keras_resnext.registry import ARCHITECTURES

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "scripts"))
from benchmarks import torch_resnext


def logits(name, weights, **options):
    """Returns PyTorch's logits, one array for each size of image."""
    row, groups = structure(name)
    weights = {_usual(key): array for key, array in weights.items()}
    with torch.device("meta"):  # where no weights are drawn
        net = torch_resnext.Net(
            row, groups, len(weights["fc.bias"]), **options
        ).eval()
    state = {k: torch.from_numpy(v) for k, v in weights.items()}
    report = net.load_state_dict(state, strict=False, assign=True)
    assert not report.unexpected_keys
    assert all("num_batches" in key for key in report.missing_keys)
    with torch.inference_mode():
        return [
            net(torch.from_numpy(images(size)).permute(0, 3, 1, 2)).numpy()
            for size in sizes(name)
        ]


def _usual(key):
    """Returns the usual name of one of Cadene's."""
    for theirs, usual in (
        ("layer0.", ""),
        (".se_module.", ".se."),
        ("last_linear.", "fc."),
    ):
        key = key.replace(theirs, usual)
    return key


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
                    sizes(name), logits(name, draw(name)), strict=True
                )
            },
        }
        path = GOLDEN / f"{name}.json"
        path.write_text(json.dumps(stored, indent=1) + "\n")
        print(path.name, max(map(abs, stored["logits"]["64x64"][0])))


if __name__ == "__main__":
    main()
