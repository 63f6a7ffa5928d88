"""What `benchmark.py` measures, each in a process of its own.

A contender makes, from the files that `prepare` wrote, a function without
arguments that does the work once and returns its result. The first result is
compared with PyTorch's before anything is timed. Frameworks are imported only
in the process that measures them.
"""

import concurrent.futures
import dataclasses
import importlib.metadata
import json
import math
import multiprocessing
import os
import pathlib
import resource
import statistics
import threading
import time
import types
from collections.abc import Callable

import numpy as np

# Those that this process may use: `taskset` can take some away.
THREADS = (
    len(os.sched_getaffinity(0))
    if hasattr(os, "sched_getaffinity")
    else os.cpu_count()
)
LEARNING_RATE = 1e-3


@dataclasses.dataclass(frozen=True)
class Task:
    """What all contenders of a comparison get.

    Attributes:
        folder: Where `prepare` put weights, images, logits and artifacts.
        network: Name of a row of `keras_resnext.registry.ARCHITECTURES`.
        side: Of the images, in pixels.
        batch: Images in one call or one step.
        train: Whether to train rather than to classify.
        clients: Threads that call at the same time.
        steps: Of training in one call.
        groups: Of the network, or `None` for the architecture's.
        width_per_group: The same.
    """

    folder: pathlib.Path
    network: str
    side: int
    batch: int
    train: bool = False
    clients: int = 1
    steps: int = 4
    groups: int | None = None
    width_per_group: int | None = None

    @property
    def images_per_call(self):
        """Number of images that one call works on."""
        return self.batch * (self.steps if self.train else self.clients)

    @property
    def expected(self):
        """The file of what PyTorch computes."""
        return self.folder / ("losses.npy" if self.train else "logits.npy")


@dataclasses.dataclass(frozen=True)
class Contender:
    """One way to run the network.

    Attributes:
        key: Name for the command line.
        name: Name for tables.
        make: From a `Task` and `options` to the function to be timed.
        precision: Type in which it computes.
        options: Keyword arguments of `make`.
        ours: Whether it is this package's.
        goal: Ratio that is wanted, if any: of a peer's time to ours, or of
            our float32's to that of fewer bits.
        artifact: Format and precision of the export that it reads, if any.
        backend: Keras's, in its process.
    """

    key: str
    name: str
    make: Callable
    precision: str = "float32"
    options: dict = dataclasses.field(default_factory=dict)
    ours: bool = False
    goal: float | None = None
    artifact: tuple[str, str] | None = None
    backend: str = "tensorflow"


# --- In the process of a contender -------------------------------------------

_running, _loaded = None, None


def start(contender, task):
    """Makes a contender ready; returns the result of its first call."""
    global _running, _loaded
    _set_up(contender.backend)
    _running = contender.make(task, **contender.options)
    _loaded = _resident()
    return _running()


def _resident():
    """Returns the megabytes that this process has in memory, on Linux."""
    statm = pathlib.Path("/proc/self/statm")
    if not statm.exists():
        return float("nan")
    return int(statm.read_text().split()[1]) * resource.getpagesize() / 1e6


def turn(seconds):
    """Times calls for so many seconds, after one to warm up.

    Returns:
        Milliseconds, the median of the calls; megabytes of memory that this
        process had before its first call, and the most it has had; and the
        processors that it kept busy.
    """
    _running()
    times, begin, work = [], time.perf_counter(), time.process_time()
    while not times or time.perf_counter() - begin < seconds:
        before = time.perf_counter()
        _running()
        times.append(1000 * (time.perf_counter() - before))
    work = time.process_time() - work
    return {
        "ms": statistics.median(times),
        "loaded_mb": _loaded,
        # Linux counts units of 1,024 bytes. The parent's are in it, hence its
        # few imports.
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        * 1.024e-3,
        "processors": work / (time.perf_counter() - begin),
    }


def _set_up(backend):
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=[parent], daemon=True).start()
    os.environ["KERAS_BACKEND"] = backend
    # Several of these processes share a GPU.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    # In float32, NVIDIA's libraries would else round factors to ten bits.
    os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")


def _end_with(parent):
    """Ends this process with its parent; a killed one could not do so."""
    parent.join()
    os._exit(1)


def prepare(task, artifacts=(), backend="tensorflow"):
    """Writes the files of a comparison into `task.folder`.

    Random weights that PyTorch drew, photographs shifted by a few pixels, what
    PyTorch computes from them in float32, and the exports.

    Args:
        task: `Task` of the largest batch.
        artifacts: Pairs of format and precision.
        backend: Keras's, which must be TensorFlow to export.

    Returns:
        Dictionary of the number of parameters, and of packages' versions.
    """
    _set_up(backend)
    import safetensors.torch

    from benchmarks import torch_resnext

    row = _architecture(task)
    facts = json.dumps(dataclasses.asdict(row))
    (task.folder / "network.json").write_text(facts)
    net = torch_resnext.Net(row, row.groups, row.classes)
    safetensors.torch.save_file(
        torch_resnext.randomise(net).state_dict(),
        task.folder / "weights.safetensors",
    )
    photographs = _photographs(task.side)
    images = [
        np.roll(photographs[i % len(photographs)], 8 * i, axis=1)
        for i in range(max(task.batch, 32))
    ]
    np.save(task.folder / "images.npy", np.stack(images))
    if task.train:
        result = torch_train(task, channels_last=False)()
    else:
        result = torch_infer(task, channels_last=False)()
    np.save(task.expected, result)
    if artifacts:
        from keras_resnext.export import export

        model = keras_model(task)
    for format, precision in artifacts:
        path = artifact(task, format, precision)
        export(
            model,
            path.parent if format == "saved_model" else path,
            format,
            precision,
            calibration=_images(task, 32) if precision == "int8" else None,
        )
    parameters = sum(weights.numel() for weights in net.parameters())
    return {"parameters": parameters} | versions()


def versions():
    """Returns the version of each package that may take part."""
    found = {}
    for package in (
        "keras",
        "tensorflow",
        "jax",
        "torch",
        "onnxruntime",
        "openvino",
        "ai-edge-litert",
    ):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def artifact(task, format, precision):
    """Returns where the export in that format and precision is."""
    path = task.folder / f"{format}-{precision}"
    return path / "1" if format == "saved_model" else path


def _architecture(task):
    """Returns the row of the registry, with the task's groups and width."""
    from keras_resnext.registry import ARCHITECTURES

    if task.network not in ARCHITECTURES:
        raise ValueError(
            f"`--network` must be one of {', '.join(ARCHITECTURES)}. "
            f"Received: network={task.network!r}. Choose one of them."
        )
    row = ARCHITECTURES[task.network]
    return dataclasses.replace(
        row,
        groups=task.groups or row.groups,
        width_per_group=task.width_per_group or row.width_per_group,
    )


def _network(task):
    """Returns the architecture; the registry would import Keras, too."""
    text = (task.folder / "network.json").read_text()
    return types.SimpleNamespace(**json.loads(text))


def _photographs(side):
    from keras_resnext import eval_transform
    from keras_resnext.export.formats import PICTURES

    usual = eval_transform("resnext50_32x4d").checkpoint
    transform = eval_transform(
        dataclasses.replace(usual, resize=side, crop=side)
    )
    return [transform(picture) for picture in PICTURES]


def _images(task, count=None):
    return np.load(task.folder / "images.npy")[: count or task.batch]


def _steps(task):
    """Returns images and labels of one training call."""
    images = np.concatenate([_images(task)] * task.steps)
    return images, np.arange(len(images)) % _network(task).classes


# --- Keras -------------------------------------------------------------------


def keras_model(task, stock=False):
    """Builds the network; of Keras's own layers where `stock`."""
    import keras_resnext

    row = _network(task)
    model = keras_resnext.ResNeXt(
        row.depths,
        row.groups,
        row.width_per_group,
        weights=task.folder / "weights.safetensors",
        input_shape=(task.side, task.side, 3),
        classes=row.classes,
        classifier_activation=None,
        block=row.block,
        stem=row.stem,
    )
    return with_stock_layers(model) if stock else model


def with_stock_layers(model):
    """Returns the same network of the layers that Keras ships."""
    import keras

    from keras_resnext.layers import BatchNormalization, GroupedConv2D

    def stock(layer):
        config = layer.get_config()
        if isinstance(layer, GroupedConv2D):
            return keras.layers.Conv2D.from_config(config)
        if isinstance(layer, BatchNormalization):
            return keras.layers.BatchNormalization.from_config(config)
        return type(layer).from_config(config)

    clone = keras.models.clone_model(model, clone_function=stock)
    clone.set_weights(model.get_weights())
    return clone


def keras_predict(task, policy="float32", stock=False, at_once=False):
    """Keras's `predict` with its defaults, or `predict_on_batch`."""
    import keras

    keras.config.set_dtype_policy(policy)
    model, images = keras_model(task, stock), _images(task)
    if at_once:
        return lambda: model.predict_on_batch(images)
    return lambda: model.predict(images, batch_size=task.batch, verbose=0)


def keras_fit(task, policy="float32", dataset=False):
    """Keras's `compile` and `fit` with their defaults; gives the loss.

    `fit` takes arrays or, as the docs advise, a dataset that is not tuned.
    """
    import keras

    keras.config.set_dtype_policy(policy)
    model, (images, labels) = keras_model(task), _steps(task)
    model.compile(
        keras.optimizers.SGD(LEARNING_RATE, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    data = (images, labels, task.batch)
    if dataset:
        data = (_dataset(*data),)

    def run():
        history = model.fit(*data, shuffle=False, verbose=0)
        return np.array(history.history["loss"])

    return run


def _dataset(images, labels, batch):
    import tensorflow as tf

    options = tf.data.Options()
    options.autotune.enabled = False
    dataset = tf.data.Dataset.from_tensor_slices((images, labels))
    return dataset.batch(batch).with_options(options)


# --- Exported artifacts ------------------------------------------------------


def saved_model(task, precision):
    """TensorFlow on our export, loaded without any option."""
    import tensorflow as tf

    path = str(artifact(task, "saved_model", precision))
    model, images = tf.saved_model.load(path), _images(task)

    def run(model=model):  # else its variables are collected
        call = model.signatures["serving_default"]
        return call(tf.constant(images))["outputs"].numpy()

    return run


def litert(task, precision):
    """LiteRT's interpreter on our export."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(
        str(artifact(task, "litert", precision)), num_threads=THREADS
    )
    images = _images(task)
    (image,) = interpreter.get_input_details()
    (output,) = interpreter.get_output_details()
    interpreter.resize_tensor_input(image["index"], images.shape)
    interpreter.allocate_tensors()

    def run():
        interpreter.set_tensor(image["index"], images)
        interpreter.invoke()
        return interpreter.get_tensor(output["index"])

    return run


def onnxruntime(task):
    """ONNX Runtime on our export."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    session = onnxruntime.InferenceSession(
        artifact(task, "onnx", "float32"),
        options,
        providers=["CPUExecutionProvider"],
    )
    feed = {"images": _images(task)}
    return lambda: session.run(None, feed)[0]


def openvino(task, **hints):
    """OpenVINO on our export; its default precision is the CPU's best."""
    import openvino

    model = openvino.Core().compile_model(
        artifact(task, "openvino", "float32") / "model.xml",
        "CPU",
        {"INFERENCE_NUM_THREADS": THREADS, **hints},
    )
    images = _images(task)
    return lambda: model(images)[0]


def session(task, inter_op, intra_op):
    """A SavedModel in a session, as TensorFlow Serving runs it.

    `inter_op` and `intra_op` are numbers of threads, 0 TensorFlow's default.
    """
    call = _session(task, "float32", inter_op, intra_op)
    images = _images(task)
    clients = concurrent.futures.ThreadPoolExecutor(task.clients)

    def run():
        answers = clients.map(call, [images] * task.clients)
        return list(answers)[-1]

    return run


def session_in_shares(task, precision, most=8):
    """The same, but every processor works alone on a share of the images.

    No operation then waits for another processor. A share has at most `most`
    images.
    """
    call = _session(task, precision, THREADS, 1)
    images = _images(task)
    count = max(THREADS, math.ceil(len(images) / most))
    shares = np.array_split(images, min(count, len(images)))
    clients = concurrent.futures.ThreadPoolExecutor(THREADS)
    return lambda: np.concatenate(list(clients.map(call, shares)))


def _session(task, precision, inter_op, intra_op):
    import tensorflow as tf

    tf1 = tf.compat.v1
    running = tf1.Session(
        graph=tf.Graph(),
        config=tf1.ConfigProto(
            inter_op_parallelism_threads=inter_op,
            intra_op_parallelism_threads=intra_op,
        ),
    )
    path = str(artifact(task, "saved_model", precision))
    loaded = tf1.saved_model.load(running, ["serve"], path)
    signature = loaded.signature_def["serving_default"]
    return running.make_callable(
        signature.outputs["outputs"].name, [signature.inputs["images"].name]
    )


# --- PyTorch -----------------------------------------------------------------


def _torch(task, channels_last, compiled):
    """Returns the network, its memory format, and its device."""
    import safetensors.torch
    import torch

    from benchmarks import torch_resnext

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(THREADS)
    row = _network(task)
    net = torch_resnext.Net(row, row.groups, row.classes)
    net.load_state_dict(
        safetensors.torch.load_file(task.folder / "weights.safetensors")
    )
    layout = torch.channels_last if channels_last else torch.contiguous_format
    net = net.to(device, memory_format=layout)
    return torch.compile(net) if compiled else net, layout, device


def _tensor(images, layout):
    import torch

    x = torch.from_numpy(images).permute(0, 3, 1, 2)
    return x.contiguous(memory_format=layout)


def torch_infer(task, channels_last=True, bfloat16=False, compiled=False):
    """PyTorch's inference."""
    import torch

    net, layout, device = _torch(task, channels_last, compiled)
    net.eval()
    images = _tensor(_images(task), layout)

    @torch.inference_mode()
    def run():
        with torch.autocast(device, torch.bfloat16, enabled=bfloat16):
            return net(images.to(device)).float().cpu().numpy()

    return run


def torch_train(task, channels_last=True, bfloat16=False, compiled=False):
    """PyTorch's training; gives the mean of the losses."""
    import torch

    net, layout, device = _torch(task, channels_last, compiled)
    net.train()
    optimizer = torch.optim.SGD(net.parameters(), LEARNING_RATE, momentum=0.9)
    criterion = torch.nn.CrossEntropyLoss()
    images, labels = _steps(task)
    batches = list(
        zip(
            _tensor(images, layout).split(task.batch),
            torch.from_numpy(labels).split(task.batch),
            strict=True,
        )
    )

    def step(x, y):
        optimizer.zero_grad()
        with torch.autocast(device, torch.bfloat16, enabled=bfloat16):
            loss = criterion(net(x.to(device)), y.to(device))
        loss.backward()
        optimizer.step()
        return loss.detach()

    def run():
        losses = torch.stack([step(*batch) for batch in batches])
        return losses.mean(0, keepdim=True).cpu().numpy()

    return run


# --- Who takes part ----------------------------------------------------------


def _ours(key, name, make, precision="float32", goal=None, **options):
    return Contender(key, name, make, precision, options, True, goal)


def _ours_exported(key, name, make, format, precision, goal=None):
    return Contender(
        f"{key}_{precision}",
        name,
        make,
        precision,
        {"precision": precision},
        ours=True,
        goal=goal,
        artifact=(format, precision),
    )


def _keras(key, name, make, goal=None, **options):
    """Returns one of ours in float32, and in mixed precision."""
    return (
        _ours(key, name, make, **options),
        _ours(
            f"{key}_bfloat16",
            f"{name}, mixed",
            make,
            "bfloat16",
            goal,
            policy="mixed_bfloat16",
            **options,
        ),
    )


_FLOAT32 = {"INFERENCE_PRECISION_HINT": "f32"}

INFERENCE = (
    *_keras("predict", "Keras predict", keras_predict),
    *_keras(
        "predict_on_batch",
        "Keras predict_on_batch",
        keras_predict,
        at_once=True,
    ),
    *(
        _ours_exported(key, name, make, "saved_model", precision)
        for precision in ("float32", "bfloat16")
        for key, name, make in (
            ("saved_model", "SavedModel", saved_model),
            ("shares", "SavedModel, in shares", session_in_shares),
        )
    ),
    _ours_exported("litert", "LiteRT", litert, "litert", "float32"),
    _ours_exported("litert", "LiteRT", litert, "litert", "int8", goal=2.0),
    Contender(
        "onnxruntime",
        "ONNX Runtime, our export",
        onnxruntime,
        goal=1.0,
        artifact=("onnx", "float32"),
    ),
    Contender(
        "openvino",
        "OpenVINO, our export",
        openvino,
        options=_FLOAT32,
        goal=1.0,
        artifact=("openvino", "float32"),
    ),
    Contender(
        "openvino_bfloat16",
        "OpenVINO, our export, by default",
        openvino,
        "bfloat16",
        goal=1.0,
        artifact=("openvino", "float32"),
    ),
    Contender("torch", "PyTorch, channels_last", torch_infer, goal=1.3),
    Contender(
        "torch_contiguous",
        "PyTorch, contiguous",
        torch_infer,
        options={"channels_last": False},
        goal=1.3,
    ),
    Contender(
        "torch_compile",
        "PyTorch, channels_last, compiled",
        torch_infer,
        options={"compiled": True},
        goal=1.15,
    ),
    Contender(
        "torch_bfloat16",
        "PyTorch, channels_last, autocast",
        torch_infer,
        "bfloat16",
        {"bfloat16": True},
        goal=1.3,
    ),
    Contender(
        "stock",
        "Keras predict, stock layers",
        keras_predict,
        options={"stock": True},
    ),
)

TRAINING = (
    *_keras("fit", "Keras fit, arrays", keras_fit, 1.6),
    *_keras("fit_dataset", "Keras fit, dataset", keras_fit, 1.6, dataset=True),
    Contender("torch", "PyTorch, channels_last", torch_train, goal=1.05),
    Contender(
        "torch_contiguous",
        "PyTorch, contiguous",
        torch_train,
        options={"channels_last": False},
        goal=1.05,
    ),
    Contender(
        "torch_bfloat16",
        "PyTorch, channels_last, autocast",
        torch_train,
        "bfloat16",
        {"bfloat16": True},
    ),
)


def _keras_on(backend, make, policy):
    precision = "bfloat16" if policy == "mixed_bfloat16" else "float32"
    name = f"Keras {'fit' if make is keras_fit else 'predict'} on {backend}"
    return Contender(
        f"{backend}_{precision}",
        name,
        make,
        precision,
        {"policy": policy},
        ours=True,
        backend=backend,
    )


def gpu(train):
    """Returns who takes part where TensorFlow need not be installed."""
    ours, peer = (
        (keras_fit, torch_train) if train else (keras_predict, torch_infer)
    )
    return (
        *(
            _keras_on(backend, ours, policy)
            for backend in ("jax", "torch")
            for policy in ("float32", "mixed_bfloat16")
        ),
        *(
            Contender(
                f"pytorch{'_compile' * compiled}_{precision}",
                f"PyTorch, channels_last{', compiled' * compiled}",
                peer,
                precision,
                {"bfloat16": precision == "bfloat16", "compiled": compiled},
                goal=1.0,
                backend="torch",
            )
            for compiled in (False, True)
            for precision in ("float32", "bfloat16")
        ),
    )


def threads():
    """Returns a session for each pair of numbers of threads, 0 the default."""
    return tuple(
        Contender(
            f"inter{inter_op}_intra{intra_op}",
            f"{inter_op or 'default'} | {intra_op or 'default'}",
            session,
            options={"inter_op": inter_op, "intra_op": intra_op},
            ours=True,
            artifact=("saved_model", "float32"),
        )
        for inter_op in (0, 1, 2)
        for intra_op in sorted({0, 1, THREADS})
    )
