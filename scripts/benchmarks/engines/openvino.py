"""OpenVINO on our export and on PyTorch's, in all precisions."""

import numpy as np

from benchmarks import tasks


def infer(task, format="openvino", precision="float32", **hints):
    """OpenVINO on a file; its default precision is the CPU's best.

    Of PyTorch's network it reads the ONNX file, or what `quantize` wrote.
    """
    import openvino

    path, images = tasks.artifact(task, format, precision), tasks.images(task)
    if path.is_dir():
        path = path / "model.xml"
    if format != "openvino":
        images = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    model = openvino.Core().compile_model(
        path, "CPU", {"INFERENCE_NUM_THREADS": tasks.THREADS, **hints}
    )
    return lambda: model(images)[0]


def quantize(task, source, path):
    """Quantises PyTorch's file with NNCF, by its defaults."""
    import nncf
    import openvino

    images = tasks.images(task, 32).transpose(0, 3, 1, 2)
    dataset = nncf.Dataset([image[np.newaxis] for image in images])
    model = nncf.quantize(openvino.Core().read_model(source), dataset)
    path.mkdir()
    openvino.save_model(model, path / "model.xml", compress_to_fp16=False)
