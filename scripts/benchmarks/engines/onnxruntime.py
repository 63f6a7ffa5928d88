"""ONNX Runtime on our export and on PyTorch's, in float32 and int8."""

import types

import numpy as np

from benchmarks import tasks


def infer(task, format="onnx", precision="float32"):
    """ONNX Runtime on a file in that format and precision."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = tasks.THREADS
    session = onnxruntime.InferenceSession(
        tasks.artifact(task, format, precision),
        options,
        providers=["CPUExecutionProvider"],
    )
    feed = {"images": _layout(format, tasks.images(task))}
    return lambda: session.run(None, feed)[0]


def quantize(task, source, path):
    """Quantises PyTorch's file with the tool and the options of ours."""
    from onnxruntime import quantization
    from onnxruntime.quantization import shape_inference

    prepared = path.with_suffix(".prepared")
    shape_inference.quant_pre_process(str(source), str(prepared))
    images = _layout("torch_onnx", tasks.images(task, 32))
    feeds = ({"images": i[np.newaxis]} for i in images)
    # What asks for one input after the other, and for none at the end.
    reader = types.SimpleNamespace(get_next=lambda: next(feeds, None))
    quantization.quantize_static(
        str(prepared),
        str(path),
        reader,
        activation_type=quantization.QuantType.QUInt8,
        per_channel=True,
        reduce_range=True,
    )
    prepared.unlink()


def _layout(format, images):
    """Returns the images with the axes in the order of the file."""
    if format == "onnx":
        return images
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2))
