"""Writes what the contenders read: weights, images, logits, artifacts."""

import shutil

import numpy as np

from benchmarks import tasks, worker
from benchmarks.engines import keras, onnxruntime, openvino, torch

# From a format of PyTorch's files to what quantises one.
PEERS = {
    "torch_onnx": onnxruntime.quantize,
    "torch_openvino": openvino.quantize,
}


def prepare(task, artifacts=(), backend="tensorflow"):
    """Writes the files of a comparison into `task.folder`.

    Random weights that PyTorch drew, photographs shifted by a few pixels, what
    PyTorch computes from them in float32, and the exports.

    Args:
        task: `Task` of the largest batch.
        artifacts: Pairs of format and precision, of `tasks.artifact`.
        backend: Keras's, which must be TensorFlow to export.

    Returns:
        Dictionary of the number of parameters, and of packages' versions.
    """
    worker.set_up(backend)
    import safetensors.torch

    from benchmarks import torch_resnext

    row = tasks.network(task)
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
        result = torch.train(task, channels_last=False)()
    else:
        result = torch.infer(task, channels_last=False)()
    np.save(task.expected, result)
    ours = [pair for pair in artifacts if pair[0] not in PEERS]
    if ours:
        _export(task, ours)
    for format, precision in set(artifacts).difference(ours):
        _export_peer(task, format, precision)
    parameters = sum(weights.numel() for weights in net.parameters())
    return {"parameters": parameters} | tasks.versions()


def _export(task, artifacts):
    """Writes what this package exports."""
    from keras_resnext.export import export

    model = keras.build(task)
    for format, precision in artifacts:
        path = tasks.artifact(task, format, precision)
        export(
            model,
            path.parent if format == "saved_model" else path,
            format,
            precision,
            calibration=tasks.images(task, 32) if precision == "int8" else None,
        )


def _export_peer(task, format, precision):
    """Writes what PyTorch exports, quantised by the engine's own tool."""
    source = task.folder / "torch.onnx"
    if not source.exists():
        torch.export(task, source)
    path = tasks.artifact(task, format, precision)
    if precision == "int8":
        PEERS[format](task, source, path)
    else:
        shutil.copyfile(source, path)


def _photographs(side):
    from keras_resnext import eval_transform
    from keras_resnext.export.formats import PICTURES
    from keras_resnext.registry import usual

    transform = eval_transform(usual(side))
    return [transform(picture) for picture in PICTURES]
