r"""Measures this package beside others, on the machine at hand.

    python scripts/benchmark.py compare
    python scripts/benchmark.py compare --batches 1 --only litert_int8 torch
    python scripts/benchmark.py growth
    python scripts/benchmark.py threads
    python scripts/benchmark.py serve served/resnext50
    python scripts/benchmark.py serve served/resnext50 --grpc localhost:8500 \
        --model resnext50
    python scripts/benchmark.py gpu
    python scripts/benchmark.py gpu --network resnext29 --groups 32 \
        --width-per-group 4 --side 32 --batches 128 --train-batch 128
    python scripts/benchmark.py layer
    python scripts/benchmark.py step
    KERAS_BACKEND=jax python scripts/benchmark.py step
    TF_ENABLE_ONEDNN_OPTS=0 python scripts/benchmark.py step
    python scripts/benchmark.py pieces

`compare` times ResNeXt-50's inference and training, ours and others': PyTorch,
ONNX Runtime, OpenVINO, and Keras's own layers. Each is a process of its own,
and all have their turns one after the other, round by round: a machine's speed
drifts, the ratio of neighbours does not. Before, each has to compute what
PyTorch does. Writes compare.md, compare.png and compare.json into --out.
`growth` tells how the time grows with the batch, the images and the
cardinality, and which share of the arithmetic peak that is.
`threads` serves the SavedModel with several numbers of threads.
`serve` asks a server of it from several clients at once, with encoded pictures
and with arrays: --grpc names TensorFlow Serving; without, sessions like its own
answer in another process.
`gpu` compares Keras on JAX and on torch with PyTorch, on a GPU if there is one;
TensorFlow need not be installed.

`layer` times a 3x3 convolution of 128 channels in 32 groups on 8 feature maps
of 56x56; `step` a whole training step of ResNeXt-50 on 8 images of 224x224,
through `compile` with its defaults and `train_on_batch`. Both sides run in
turns in one process. Takes one and ten minutes on two cores: Keras's side is
that slow. `pieces` times ResNeXt-50 beside itself with Keras's sums, and
without its grouped convolutions, which says what these take at most; and a
single picture without them by XLA, beside the whole network without XLA.
"""

import concurrent.futures
import dataclasses
import functools
import os
import pathlib
import platform
import statistics
import sys
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
__keras_later__ = True  # only in the processes that need it

from keras_resnext.commands import console  # first: for Ctrl-C

# isort: split
import numpy as np
import tqdm

from benchmarks import contenders, tasks
from benchmarks.compare import (
    describe,
    machine,
    measure,
    process,
    table,
    write,
)
from benchmarks.engines import keras as keras_engine
from benchmarks.growth import SERIES, growth
from benchmarks.prepare import prepare as write_files
from benchmarks.serve import serve
from common import files
from keras_resnext import processor


def milliseconds(function):
    """Returns how long one call takes."""
    start = time.perf_counter()
    function()
    return 1000 * (time.perf_counter() - start)


def in_turns(name, stock, ours, repeats):
    """Times two functions in turns and prints one row of a table."""
    stock(), ours()  # traces and compiles
    times = [
        (milliseconds(stock), milliseconds(ours))
        for _ in tqdm.trange(repeats, desc=name, leave=False, disable=None)
    ]
    a, b = (statistics.median(column) for column in zip(*times, strict=True))
    print(f"| {name} | {a:,.1f} | {b:,.1f} | {a / b:,.1f} |", flush=True)


def print_head(theirs="Conv2D, ms", ours="GroupedConv2D, ms"):
    """Prints the versions and the head of the table of `in_turns`."""
    from common import versions  # which imports Keras

    found = versions.loaded().items()
    print(
        f"{', '.join(map(' '.join, found))}, "
        f"{platform.machine()}, {processor.instruction_set()}, "
        f"{tasks.THREADS} threads, "
        f"TF_ENABLE_ONEDNN_OPTS={os.environ.get('TF_ENABLE_ONEDNN_OPTS')}\n"
    )
    print(f"| | {theirs} | {ours} | ratio |")
    print("|---|---|---|---|")


def layer_functions(layer_class):
    """Returns the forward pass of one layer and the gradient of its kernel.

    Both are functions without arguments.
    """
    import tensorflow as tf

    random = np.random.default_rng(0)
    x = tf.constant(random.standard_normal((8, 56, 56, 128)), "float32")
    layer = layer_class(128, 3, padding="same", groups=32, use_bias=False)
    layer.build(x.shape)
    kernel = layer.kernel.value

    @tf.function
    def forward():
        return layer(x)

    @tf.function
    def gradient():
        with tf.GradientTape() as tape:
            tape.watch(kernel)
            y = layer(x)
        return tape.gradient(y, kernel)

    return forward, gradient


def layer(_):
    """Times one layer."""
    import keras

    from keras_resnext.layers import GroupedConv2D

    print_head()
    forward, gradient = layer_functions(GroupedConv2D)
    stock_forward, stock_gradient = layer_functions(keras.layers.Conv2D)
    in_turns("forward", stock_forward, forward, repeats=15)
    in_turns("gradient of the kernel", stock_gradient, gradient, repeats=3)


def step(_):
    """Times one step of training."""
    import keras_resnext

    print_head()
    random = np.random.default_rng(0)
    x = random.standard_normal((8, 224, 224, 3), dtype="float32")
    y = random.integers(0, 1000, 8)
    ours = keras_resnext.ResNeXt50(weights=None)
    stock = keras_engine.with_stock_layers(ours)
    for model in (ours, stock):
        model.compile("sgd", "sparse_categorical_crossentropy")

    in_turns(
        "training step",
        lambda: stock.train_on_batch(x, y),
        lambda: ours.train_on_batch(x, y),
        repeats=3,
    )


def pieces(_):
    """Times ResNeXt-50 with one of its pieces as Keras has it, or left out."""
    import keras
    import tensorflow as tf

    import keras_resnext
    from keras_resnext.export.folding import fold, frozen

    print_head("exchanged, ms", "as it is, ms")
    random = np.random.default_rng(0)
    images = random.standard_normal((8, 224, 224, 3), dtype="float32")
    labels = random.integers(0, 1000, 8)
    ours = keras_resnext.ResNeXt50(weights=None, input_shape=(None, None, 3))
    sums = {keras_resnext.layers.Add: keras.layers.Add}
    others = {
        "Keras's sums": keras_engine.exchanged(ours, sums),
        "without grouped convolutions": keras_engine.without_groups(ours),
    }
    # What XLA could give a single picture, were the groups' time nothing:
    # first, as graphs that come before slow down what is short.
    whole, rest = (
        frozen(fold(model))
        for model in (ours, others["without grouped convolutions"])
    )
    x = tf.constant(images[:1])
    in_turns(
        "without grouped convolutions, by XLA; folded: 1 x 224 pixels",
        functools.partial(tf.function(rest, jit_compile=True), x),
        functools.partial(whole, x),
        repeats=25,
    )
    for model in (ours, *others.values()):
        model.compile("sgd", "sparse_categorical_crossentropy")

    for name, other in others.items():
        for count, repeats in ((1, 25), (8, 7)):
            x = images[:count]
            in_turns(
                f"{name}: {count} x 224 pixels",
                functools.partial(other.predict_on_batch, x),
                functools.partial(ours.predict_on_batch, x),
                repeats,
            )
        x = images[:, :96, :96]
        in_turns(
            f"{name}: training step, 8 x 96 pixels",
            functools.partial(other.train_on_batch, x, labels),
            functools.partial(ours.train_on_batch, x, labels),
            repeats=9,
        )


def prepare(task, chosen, backend="tensorflow"):
    """Writes what the contenders read; returns facts for the report."""
    artifacts = {c.artifact: None for c in chosen if c.artifact}
    with process() as once:
        versions = once.submit(
            write_files, task, tuple(artifacts), backend
        ).result()
    return machine() | versions


def chosen_from(everyone, only):
    """Returns the contenders whose keys the command line names, or all."""
    return [c for c in everyone if not only or c.key in only]


def run_sections(arguments, name, title, inference, training, backend):
    """Compares inference and training, and writes the report."""
    inference = chosen_from(inference, arguments.only)
    training = chosen_from(training, arguments.only)
    arguments.out.mkdir(parents=True, exist_ok=True)
    sections = {}
    with tempfile.TemporaryDirectory() as folder:
        work = [
            (f"Inference, batch {batch}", inference, batch, False)
            for batch in arguments.batches
        ]
        if arguments.train_batch:
            batch = arguments.train_batch
            work.append((f"Training, batch {batch}", training, batch, True))
        task = tasks.Task(
            pathlib.Path(folder),
            arguments.network,
            arguments.side,
            max(batch for *_, batch, _ in work),
            steps=arguments.steps,
            groups=arguments.groups,
            width_per_group=arguments.width_per_group,
        )
        facts = prepare(task, inference, backend)
        for section, chosen, batch, train in work:
            if not chosen:
                continue
            task = dataclasses.replace(task, batch=batch, train=train)
            if train:
                prepare(task, (), backend)
            sections[section] = measure(
                chosen, task, arguments.rounds, arguments.seconds
            )
            print(f"## {section}\n\n{table(sections[section])}\n", flush=True)
            # Each time, so that an interruption costs one section at most.
            write(arguments.out / name, title, facts, sections)
    print(f"Picture: {arguments.out / name}.png")


def compare(arguments):
    """Compares on a CPU."""
    title = f"{arguments.network} at {arguments.side} pixels"
    run_sections(
        arguments,
        "compare",
        title,
        contenders.INFERENCE,
        contenders.TRAINING,
        "tensorflow",
    )


def gpu(arguments):
    """Compares Keras's other backends with PyTorch."""
    title = f"{arguments.network} at {arguments.side} pixels, JAX and torch"
    run_sections(
        arguments,
        "gpu",
        title,
        contenders.gpu(train=False),
        contenders.gpu(train=True),
        "torch",
    )


def threads(arguments):
    """Compares numbers of threads for serving the SavedModel."""
    chosen = chosen_from(contenders.threads(), arguments.only)
    arguments.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        task = tasks.Task(
            pathlib.Path(folder), arguments.network, arguments.side, batch=8
        )
        facts = prepare(task, chosen)
        columns = {}
        for title, batch, clients in (
            ("batch 1, ms", 1, 1),
            ("batch 8, ms", 8, 1),
            ("4 clients of batch 1, ms", 1, 4),
        ):
            task = dataclasses.replace(task, batch=batch, clients=clients)
            columns[title] = measure(
                chosen, task, arguments.rounds, arguments.seconds
            )
    write_threads(arguments.out / "threads.md", facts, columns)


def write_threads(path, facts, columns):
    """Writes and prints the table of `threads`.

    Args:
        path: File to write.
        facts: Dictionary about the machine and the versions.
        columns: Dictionary from title to the `compare.Result`s, each in the
            same order.
    """
    lines = [
        f"| inter-op threads | intra-op threads | {' | '.join(columns)} |",
        "|---|---|" + "---:|" * len(columns),
    ]
    for row in zip(*columns.values(), strict=True):
        cells = " | ".join(f"{result.ms:,.1f}" for result in row)
        lines.append(f"| {row[0].contender.name} | {cells} |")
    text = f"{describe(facts)}\n\n" + "\n".join(lines) + "\n"
    files.write(path, text)
    print(text)


def parse_arguments():
    """Returns the command line's options."""
    parser = console.Parser(description=__doc__)
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    def add(verb, parents=()):
        meaning = {"help": verb.__doc__, "description": verb.__doc__}
        one = verbs.add_parser(verb.__name__, parents=parents, **meaning)
        one.set_defaults(verb=verb)
        return one

    out = console.Parser(add_help=False)
    out.add_argument(
        "--out", type=console.path, default="runs/benchmark", help="folder"
    )
    files = console.Parser(add_help=False, parents=[out])
    files.add_argument(
        "--rounds", type=console.POSITIVE, default=5, help="turns of each"
    )
    for verb in (layer, step, pieces):
        add(verb)
    parents = [files, _network_options()]
    # What `fit` does once in a call is most of a few steps' time on a GPU.
    cpu = contenders.INFERENCE + contenders.TRAINING
    _add_batches(add(compare, parents), cpu, [1, 8, 32], 16, 4)
    either = contenders.gpu(False) + contenders.gpu(True)
    _add_batches(add(gpu, parents), either, [1, 32, 256], 128, 25)
    _add_only(add(threads, parents), contenders.threads())
    _add_clients(add(serve, [out]))
    one = add(growth, [files])
    for option, values in SERIES.items():
        numbers = isinstance(values[0], int)
        one.add_argument(
            f"--{option}",
            **{"type": console.POSITIVE} if numbers else {"choices": values},
            nargs="*",
            default=values,
            help="to measure",
        )
    return parser.parse_args()


def _network_options():
    """Returns a parser of the options of what times one network."""
    parser = console.Parser(add_help=False)
    add = parser.add_argument
    add(
        "--network",
        type=console.architecture,
        default="resnext50_32x4d",
        help="architecture",
    )
    add("--side", type=console.SIDE, default=224, help="pixels")
    add(
        "--seconds",
        type=console.SECONDS,
        default=0.5,
        help="of a turn, or one call",
    )
    return parser


def _add_batches(parser, everyone, batches, train_batch, steps):
    """Adds the options of a comparison of inference and training."""
    add, whole = parser.add_argument, console.POSITIVE
    add("--groups", type=whole, help="if other than its")
    add("--width-per-group", type=whole, help="as --groups")
    add(
        "--batches",
        type=whole,
        nargs="+",
        default=batches,
        help="pictures in a batch",
    )
    add(
        "--train-batch",
        type=console.COUNT,
        default=train_batch,
        help="the same in training, or 0: none",
    )
    add("--steps", type=whole, default=steps, help="in a call of training")
    _add_only(parser, everyone)


def _add_clients(parser):
    """Adds the options of `serve`."""
    add = parser.add_argument
    add(
        "path",
        type=console.path,
        help="what `export` wrote: it is asked, or, with --grpc, says only\n"
        "which side the pictures have",
    )
    add("--grpc", help="host and port of TensorFlow Serving")
    add("--model", default="resnext50", help="its name there")
    add(
        "--side",
        type=console.SIDE,
        help="pixels (default: what the model says it takes, or 224)",
    )
    add(
        "--clients",
        type=console.POSITIVE,
        nargs="+",
        default=[1, 4, 16],
        help="numbers of clients that ask at once",
    )
    add(
        "--seconds",
        type=console.SECONDS,
        default=10,
        help="of each measurement",
    )


def _add_only(parser, everyone):
    keys = dict.fromkeys(c.key for c in everyone)
    parser.add_argument(
        "--only",
        nargs="+",
        choices=keys,
        metavar="KEY",
        help=f"of {', '.join(keys)} (default: all)",
    )


@console.plain_errors()
def main():
    """Runs the measurement that the command line names."""
    arguments = parse_arguments()
    backend = processor.chosen_backend()
    if arguments.verb in (layer, pieces) and backend != "tensorflow":
        raise ValueError(
            f"`{arguments.verb.__name__}` measures graphs of TensorFlow. "
            f"Received: {backend} as Keras's backend. Set "
            "KERAS_BACKEND=tensorflow."
        )
    if arguments.verb in (compare, gpu):
        console.require_packages("parity", "torch")
    try:
        arguments.verb(arguments)
    except concurrent.futures.BrokenExecutor:
        sys.exit(
            "Memory is required for all contenders of a section at once; 24 "
            "GB do for all of `compare`. Received: the end of a process. "
            "Choose fewer with --only, or smaller --batches."
        )


if __name__ == "__main__":
    main()
