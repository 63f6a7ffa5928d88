r"""Compares the speed of training with a plain PyTorch loop, on one device.

    KERAS_BACKEND=jax python scripts/gpu_compare.py --out compare.json

The same ResNeXt-29, batch and SGD with Nesterov momentum in bfloat16: Keras's
`fit`, and PyTorch (channels last, autocast) without and with `torch.compile`.
Each runs in a process of its own and gets the same uint8 pictures from the
host's memory. Prints, and writes, images/s: the median of --repeats times
--steps steps, after as many to warm up.
"""

import argparse
import dataclasses
import json
import pathlib
import platform
import statistics
import subprocess
import sys
import time

import numpy as np

SIDES = ("keras", "torch", "torch.compile")
TESTS = pathlib.Path(__file__).resolve().parents[1] / "tests"


def parse_arguments():
    """Returns the command line's options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--side", choices=SIDES, help="by default all, in turn")
    parser.add_argument("--groups", type=int, default=32)
    parser.add_argument("--width-per-group", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--size", type=int, default=32, help="pixels")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=pathlib.Path, help="JSON file")
    return parser.parse_args()


def batch(args):
    """Returns pictures (batch, size, size, 3), 0..255, and labels."""
    random = np.random.default_rng(0)
    shape = (args.batch_size, args.size, args.size, 3)
    images = random.integers(0, 256, shape, dtype="uint8")
    return images, random.integers(0, 10, args.batch_size)


def rate(train, args):
    """Returns images/s of `train`, which takes a number of steps."""
    train(args.steps)
    times = []
    for _ in range(args.repeats):
        start = time.perf_counter()
        train(args.steps)
        times.append(time.perf_counter() - start)
    return args.steps * args.batch_size / statistics.median(times)


def keras_side(args):
    """Returns images/s of `fit`, and what it ran on."""
    import keras

    import keras_resnext

    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    images = keras.Input((args.size, args.size, 3), dtype="uint8")
    x = keras_resnext.preprocess_input(images)
    y = keras_resnext.ResNeXt29(
        weights=None,
        classifier_activation=None,
        input_shape=(args.size, args.size, 3),
        groups=args.groups,
        width_per_group=args.width_per_group,
    )(x)
    model = keras.Model(images, y)
    model.compile(
        keras.optimizers.SGD(0.01, momentum=0.9, nesterov=True),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    pair = batch(args)

    def train(steps):
        # The loss is read at the end, which waits for the last step.
        model.fit(
            (pair for _ in range(steps)),
            steps_per_epoch=steps,
            shuffle=False,
            verbose=0,
        )

    backend = keras.backend.backend()
    return rate(train, args), f"Keras {keras.__version__}, {backend}"


def torch_side(args, compile):
    """Returns images/s of PyTorch's loop, and what it ran on."""
    import torch

    sys.path.insert(0, str(TESTS))
    from torch_reference import Net

    from keras_resnext import registry

    device = "cuda" if torch.cuda.is_available() else "cpu"
    row = dataclasses.replace(
        registry.ARCHITECTURES["resnext29"],
        width_per_group=args.width_per_group,
    )
    net = Net(row, args.groups, 10).to(
        device, memory_format=torch.channels_last
    )
    run = torch.compile(net) if compile else net
    sgd = torch.optim.SGD(net.parameters(), 0.01, momentum=0.9, nesterov=True)
    images, labels = map(torch.from_numpy, batch(args))
    images = images.permute(0, 3, 1, 2)  # channels last in memory
    mean, std = (
        torch.tensor(v, device=device).view(3, 1, 1)
        for v in (registry.IMAGENET_MEAN, registry.IMAGENET_STD)
    )

    def train(steps):
        for _ in range(steps):
            x = (images.to(device).float() / 255 - mean) / std
            with torch.autocast(device, torch.bfloat16):
                logits = run(x)
            loss = torch.nn.functional.cross_entropy(
                logits.float(), labels.to(device)
            )
            sgd.zero_grad()
            loss.backward()
            sgd.step()
        loss.item()  # waits for the last step

    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    return rate(train, args), f"PyTorch {torch.__version__}, {name}"


def main():
    """Measures one side here, or each side in a process of its own."""
    args = parse_arguments()
    if args.side:
        if args.side == "keras":
            speed, where = keras_side(args)
        else:
            speed, where = torch_side(args, args.side == "torch.compile")
        print(json.dumps({"images_per_second": round(speed, 1), "on": where}))
        return
    result = {"machine": platform.processor() or platform.machine()}
    for side in SIDES:
        command = [sys.executable, *sys.argv, "--side", side]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            sys.exit(f"{side} ended with status {done.returncode}.")
        result[side] = json.loads(done.stdout.splitlines()[-1])
        print(side, *result[side].values(), sep="\t", flush=True)
    if args.out:
        args.out.write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
