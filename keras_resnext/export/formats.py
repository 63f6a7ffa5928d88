"""Writes each format, and runs it in its own runtime."""

import dataclasses
import functools
import importlib.metadata
import json
import logging
import os
import pathlib
import tempfile
import warnings
from collections.abc import Callable

import keras
import numpy as np

from keras_resnext import registry
from keras_resnext.export import serving
from keras_resnext.export.folding import servable, wrapped
from keras_resnext.registry import require

PICTURES = sorted(
    (pathlib.Path(__file__).parents[1] / "pictures").glob("*.jpg")
)


@dataclasses.dataclass(frozen=True)
class Job:
    """What the writers get.

    Attributes:
        model: What `keras_resnext.export.folding.fold` returned.
        precision: `"float32"`, `"float16"`, `"bfloat16"` or `"int8"`.
        side: Of the images where the model leaves it open, in pixels.
        samples: Inputs to compare: from a name of `input_names` to an array,
            `(pictures, height, width, channels)`.
        calibration: Such inputs that show the range of every feature map.
        checkpoint: Whose preprocessing encoded pictures get, or `None`.
        labels: Names of the classes, or `None`.
        top: Number of classes to return for an encoded picture.
        max_pixels: Greatest number of pixels of an encoded picture.
    """

    model: keras.Model
    precision: str
    side: int
    samples: dict[str, np.ndarray]
    calibration: dict[str, np.ndarray] | None
    checkpoint: registry.Checkpoint | None
    labels: list[str] | None
    top: int
    max_pixels: int

    def facts(self):
        """Returns what the artifact says of its inputs and outputs.

        Each entry is a value for JSON; without a checkpoint there is none.
        """
        row = self.checkpoint
        if row is None:
            return {}
        return {
            "checkpoint": f"{row.architecture}/{row.tag}",
            "licence": row.licence,
            "order": "RGB, (batch, height, width, channels)",
            "dtype": self.model.inputs[0].dtype,
            "resize": row.resize,
            "crop": row.crop,
            "interpolation": row.interpolation,
            "mean": row.mean,
            "std": row.std,
            "labels": self.labels,
        }


@dataclasses.dataclass(frozen=True)
class Format:
    """How to write and to run one format.

    Attributes:
        write: Function of a `Job` and the path to write; may return a tuple
            of sentences on what has been left out.
        load: From the path to the runtime's name and a function from images
            to outputs, both NumPy arrays; several inputs and several outputs
            are dictionaries by their names.
        file: The artifact's name, where nobody chooses another one.
        precisions: What `Job.precision` may be.
        code: Lines of Python that run the artifact at `{path}` on `images`.
        holds: A file in the artifact, if that is a folder.
        packages: What both import, beside TensorFlow.
        quantizer: What writes `"int8"`, where that is another package.
    """

    write: Callable
    load: Callable
    file: str
    precisions: tuple[str, ...]
    code: str
    holds: str | None = None
    packages: tuple[str, ...] = ()
    quantizer: tuple[str, ...] = ()

    @property
    def ending(self):
        """The ending of its file's name, as `".onnx"`; a folder has none."""
        return pathlib.Path(self.file).suffix

    def is_at(self, path):
        """Tells whether a path, `pathlib.Path`, is such an artifact."""
        if self.holds:
            return (path / self.holds).is_file()
        return path.is_file() and path.suffix == self.ending


def one_by_one(inputs):
    """Yields inputs by their names as batches of one."""
    for rows in zip(*inputs.values(), strict=True):
        yield {
            name: row[np.newaxis]
            for name, row in zip(inputs, rows, strict=True)
        }


def _named(images):
    """Returns inputs by their names; a single one needs none."""
    return images if isinstance(images, dict) else {"images": images}


def _single(outputs):
    """Returns the only one of named outputs, or all of them."""
    return outputs if len(outputs) > 1 else next(iter(outputs.values()))


def _write_saved_model(job, path):
    serving.save(
        job.model,
        path,
        job.checkpoint,
        job.labels,
        job.top,
        job.max_pixels,
        job.facts(),
    )
    requests = {"serving_default": next(one_by_one(job.samples))}
    notes = []
    if job.checkpoint is None:
        notes.append("No `checkpoint`: without the signature serving_bytes.")
    else:
        picture = PICTURES[0].read_bytes()
        requests["serving_bytes"] = {"pictures": [picture]}
    if not serving.write_warmup(path, requests):
        notes.append("No tensorflow-serving-api: without warm-up requests.")
    return tuple(notes)


def _load_saved_model(path):
    import tensorflow as tf

    model = tf.saved_model.load(str(path))

    # A default, as without its model a signature loses its variables.
    def run(images, signature="serving_default", model=model):
        inputs = {n: tf.constant(x) for n, x in _named(images).items()}
        outputs = model.signatures[signature](**inputs)
        return _single({name: y.numpy() for name, y in outputs.items()})

    return f"TensorFlow {tf.__version__}", run


def _write_onnx(job, path):
    import onnx

    proto = _to_onnx(_closed(servable(job.model)))
    _resize_to_sizes(proto)
    _pad_in_pooling(proto.graph)
    _pad_around_holes(proto.graph)
    onnx.checker.check_model(proto, full_check=True)
    if job.precision == "float16":
        from onnxruntime.transformers import float16

        # ONNX defines IsInf, as of a softmax over places, for float32 alone.
        kept = [*float16.DEFAULT_OP_BLOCK_LIST, "IsInf"]
        proto = float16.convert_float_to_float16(
            proto, keep_io_types=True, op_block_list=kept
        )
    if job.precision == "int8":
        proto = _quantized_onnx(proto, job.calibration)
    _name_axes(proto.graph)
    facts = {k: json.dumps(v) for k, v in job.facts().items()}
    onnx.helper.set_model_props(proto, facts)
    onnx.save(proto, path)


def _to_onnx(run):
    """Returns a `tf.function` as an ONNX model."""
    import tf2onnx.convert

    # Set, whatever to: else each of its optimizers copies the graph, 80 times
    # the model's size, to go on without the optimizer if that fails.
    variable = "TF2ONNX_CATCH_ERRORS"
    usual = os.environ.get(variable)
    if usual is None:
        os.environ[variable] = "false"
    convert = functools.partial(
        tf2onnx.convert.from_function,
        run,
        run.input_signature,
        opset=18,
        # What Keras's gelu and celu compute, and it does not know.
        custom_op_handlers={
            "Erfc": (_from_others, ["Erf", "Sub", (1, 0)]),
            "Expm1": (_from_others, ["Exp", "Sub", (0, 1)]),
        },
        custom_rewriter=[_scalars_to_vectors],
    )
    try:
        return convert()[0]
    except Exception:  # an optimizer's
        del os.environ[variable]
        return convert()[0]
    finally:
        os.environ.pop(variable, None)
        if usual is not None:
            os.environ[variable] = usual


def _from_others(ctx, node, name, args):
    """Puts one operation and the difference from 1 in an operation's place."""
    from tf2onnx.utils import map_onnx_to_numpy_type

    combine, order = args
    dtype = ctx.get_dtype(node.output[0])
    number = np.ones((), map_onnx_to_numpy_type(dtype))
    one = ctx.make_const(f"{name}_one", number)
    first = ctx.make_node(
        node.type, node.input, name=f"{name}_first", skip_conversion=True
    )
    terms = (first.output[0], one.output[0])
    shape = ctx.get_shape(node.output[0])
    ctx.remove_node(node.name)
    ctx.make_node(
        combine,
        [terms[i] for i in order],
        name=name,
        outputs=node.output,
        shapes=[shape],
        dtypes=[dtype],
    )


def _scalars_to_vectors(graph, _):
    """Gives scalars that are added an axis.

    tf2onnx's optimizer of layouts fails at a scalar behind a convolution.
    """
    for node in graph.get_nodes():
        if node.type not in ("Add", "AddV2") or not graph.get_shape(
            node.output[0]
        ):
            continue
        for i, term in enumerate(node.inputs):
            if term.is_const():
                value = term.get_tensor_value(as_list=False)
                if value.ndim == 0:
                    name = f"{node.name}_vector_{i}"
                    vector = graph.make_const(name, value.reshape(1))
                    graph.replace_input(
                        node, node.input[i], vector.output[0], i
                    )
    return graph.get_nodes()


def _resize_to_sizes(proto):
    """Has maps resized to sizes where scales would round these down.

    12 pixels times the float32 next to 7/12 are less than 7.
    """
    import onnx

    make = onnx.helper.make_node
    values = {
        v.name: onnx.numpy_helper.to_array(v) for v in proto.graph.initializer
    }
    for node in [n for n in proto.graph.node if n.op_type == "Resize"]:
        if len(node.input) == 4:  # where empty scales would become float16
            node.input[2] = ""
        scales = values.get(node.input[2]) if len(node.input) == 3 else None
        if scales is None or not all(scales[:2] == 1):
            continue
        if not (scales % 1).any():  # nothing to round, nor to infer
            continue
        # Anew each time: it follows from how the maps before were resized.
        graph = onnx.shape_inference.infer_shapes(proto, data_prop=True).graph
        sides = {
            value.name: [d.dim_value for d in value.type.tensor_type.shape.dim]
            for value in (*graph.value_info, *graph.input)
        }.get(node.input[0], [])[2:]
        if len(sides) != 2 or not all(sides):
            continue
        exact = scales[2:].astype("float64") * sides
        sizes = np.rint(exact).astype("int64")
        if (np.floor(exact) == sizes).all():
            continue
        # Not with `axes`, which ONNX Runtime forgets where it moves layouts.
        first, last, all_four = (
            f"{node.name}_{part}" for part in ("first", "last", "sizes")
        )
        proto.graph.initializer.append(
            onnx.numpy_helper.from_array(sizes, last)
        )
        place = list(proto.graph.node).index(node)
        proto.graph.node.insert(
            place, make("Shape", node.input[:1], [first], end=2)
        )
        proto.graph.node.insert(
            place + 1, make("Concat", [first, last], [all_four], axis=0)
        )
        node.input[2:] = ["", all_four]


def _closed(run):
    """Returns a `tf.function` that has what it captures as constants.

    tf2onnx takes tensors that layers hold, as means to subtract, for inputs.
    """
    import tensorflow as tf
    from tensorflow.python.framework import convert_to_constants

    concrete = run.get_concrete_function()
    if all(x.dtype == tf.resource for x in concrete.captured_inputs):
        return run
    constant = convert_to_constants.convert_variables_to_constants_v2(
        concrete, lower_control_flow=False
    )
    if len(constant.inputs) > len(run.input_signature):
        raise ValueError("tf2onnx takes no tables, as of `StringLookup`")
    names = sorted(concrete.structured_outputs)  # as tf.nest has them

    @tf.function(input_signature=run.input_signature)
    def closed(*images):
        outputs = tf.nest.flatten(constant(*images))
        return dict(zip(names, outputs, strict=True))

    return closed


def _pad_in_pooling(graph):
    """Has maxima of what a ReLU computes pad their input themselves.

    They pad with minus infinity, and behind a ReLU zeros are the same. Padding
    apart is a copy, and one in float32 where all the rest is int8.
    """
    import onnx

    values = {v.name: onnx.numpy_helper.to_array(v) for v in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    for pool in graph.node:
        if pool.op_type != "MaxPool":
            continue
        pad, own = makers.get(pool.input[0]), _attributes(pool)
        zeros = _zeros(pad, makers, values)
        if (
            zeros
            and own.pop("auto_pad", b"VALID") in (b"VALID", b"NOTSET")
            and not any(own.pop("pads", ()))
            # Else there are maxima of padding alone.
            and all(map(int.__lt__, zeros, 2 * own["kernel_shape"]))
        ):
            _set_attributes(pool, own | {"pads": zeros})
            pool.input[0] = pad.input[0]
    used = {value.name for value in graph.output}
    used |= {name for node in graph.node for name in node.input}
    for pad in [n for n in graph.node if n.op_type == "Pad"]:
        if pad.output[0] not in used:
            graph.node.remove(pad)
    used = {name for node in graph.node for name in node.input}
    for value in [v for v in graph.initializer if v.name not in used]:
        graph.initializer.remove(value)


def _attributes(node):
    """Returns the attributes of an ONNX node by their names."""
    import onnx

    return {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}


def _set_attributes(node, attributes):
    """Gives an ONNX node these attributes alone."""
    import onnx

    made = [onnx.helper.make_attribute(k, v) for k, v in attributes.items()]
    del node.attribute[:]
    node.attribute.extend(made)


def _pad_around_holes(graph):
    """Says how much convolutions with holes pad, where the size is open.

    ONNX Runtime does not work it out there. They have no strides.
    """
    for conv in [n for n in graph.node if n.op_type == "Conv"]:
        own = _attributes(conv)
        holes = own.get("dilations", [1])
        if max(holes) > 1 and own.pop("auto_pad", b"") == b"SAME_UPPER":
            pairs = zip(own["kernel_shape"], holes, strict=True)
            both = [(size - 1) * hole for size, hole in pairs]
            pads = [n // 2 for n in both] + [n - n // 2 for n in both]
            _set_attributes(conv, own | {"pads": pads})


def _zeros(pad, makers, values):
    """Returns how many zeros a node puts around what a ReLU computes.

    Above, to the left, below and to the right; nothing if it does other things.
    """
    if pad is None or pad.op_type != "Pad" or pad.input[1] not in values:
        return []
    first = makers.get(pad.input[0])
    others = [values.get(name, 1) for name in pad.input[2:] if name]
    sides = values[pad.input[1]].tolist()
    if (
        first is None
        or first.op_type != "Relu"
        or any(others)  # another number than zero, or some axes alone
        or _attributes(pad).get("mode", b"constant") != b"constant"
        or len(sides) != 8
        or any(sides[:2] + sides[4:6])
        or min(sides) < 0
    ):
        return []
    return sides[2:4] + sides[6:]


def _quantized_onnx(proto, calibration):
    """Quantises a model with the ranges that its calibration pictures have.

    Weights get seven bits: with eight, processors without VNNI add two
    products in 16 bits, which overflow. In a trial on 1,500 pictures of
    CIFAR-10 that lost 1.1 % of them, and seven bits 0.3 %. Feature maps have
    no sign, as most follow a ReLU: their eight bits then count, and the
    processors' products are of such a number and one with a sign. With signs
    on both sides a network takes 1.7 times as long. Scores stay in float32:
    256 steps of a probability are too few, and they take no time.
    """
    import onnx
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):
        inputs = one_by_one(calibration)

        def get_next(self):
            return next(self.inputs, None)

    scores = ("Softmax", "Sigmoid")
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder, "model.onnx")
        quantization.shape_inference.quant_pre_process(
            proto, file, skip_optimization=True, skip_symbolic_shape=True
        )
        proto = onnx.load(file)
        quantization.quantize_static(
            proto,
            file,
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            activation_type=quantization.QuantType.QUInt8,
            per_channel=True,
            reduce_range=True,
            nodes_to_exclude=[
                node.name for node in proto.graph.node if node.op_type in scores
            ],
        )
        return onnx.load(file)


def _name_axes(graph):
    """Names the variable axes, which the converter numbers."""
    del graph.value_info[:]  # would still have the old names
    for value in (*graph.input, *graph.output):
        dims = value.type.tensor_type.shape.dim
        names = ("pictures", "height", "width", "channels")[-len(dims) + 1 :]
        # One name is one size: maps are smaller than the images, and of two
        # inputs each may have its own.
        if value in graph.output or len(graph.input) > 1:
            names = [f"{value.name}_{name}" for name in names]
        for dim, name in zip(dims, ("batch", *names), strict=False):
            if not dim.HasField("dim_value"):
                dim.dim_param = name


def _load_onnx(path):
    import onnxruntime

    session = onnxruntime.InferenceSession(
        str(path), providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    return (
        f"ONNX Runtime {onnxruntime.__version__}",
        lambda images: _single(
            dict(zip(names, session.run(names, _named(images)), strict=True))
        ),
    )


def _lite():
    """Returns the module that converts to LiteRT.

    The only line to change on the day it leaves TensorFlow. Today nothing
    else takes a SavedModel: Keras's own exporter uses this module as well,
    `ai-edge-litert` 2.3 is the runtime alone, `litert-torch` takes PyTorch's
    modules, and `litert-converter` 0.5 begins at StableHLO.
    """
    import tensorflow as tf

    return tf.lite


def _write_litert(job, path):
    import tensorflow as tf

    lite = _lite()
    model = job.model
    if any(None in x.shape[1:] for x in model.inputs):
        model = wrapped(model, job.side)
    saved = path.with_name("saved_model")
    serving.save(model, saved)
    converter = lite.TFLiteConverter.from_saved_model(str(saved))
    if job.precision != "float32":
        converter.optimizations = [lite.Optimize.DEFAULT]
    if job.precision == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if job.precision == "int8":
        builtins = lite.OpsSet.TFLITE_BUILTINS_INT8
        converter.target_spec.supported_ops = [builtins]
        converter.representative_dataset = lambda: one_by_one(job.calibration)
    with warnings.catch_warnings():
        # Of a class that the converter itself uses, to find inputs by name.
        warnings.filterwarnings("ignore", ".*tf.lite.Interpreter is deprecated")
        data = converter.convert()
    path.write_bytes(_with_metadata(data, job.facts()) if job.facts() else data)


def _with_metadata(data, facts):
    """Adds facts, as the entry `preprocessing`, to a LiteRT file's metadata."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(data)
    content = json.dumps(facts).encode()
    model.buffers.append(schema.BufferT(data=np.frombuffer(content, "uint8")))
    entry = schema.MetadataT(
        name="preprocessing", buffer=len(model.buffers) - 1
    )
    model.metadata = [*(model.metadata or ()), entry]
    builder = flatbuffers.Builder(len(data) + len(content))
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _load_litert(path):
    from ai_edge_litert import interpreter as litert

    version = importlib.metadata.version("ai-edge-litert")
    interpreter = litert.Interpreter(str(path), num_threads=os.cpu_count())
    interpreter.allocate_tensors()
    signature = interpreter.get_signature_runner()
    indices, outputs = (
        {name: tensor["index"] for name, tensor in details.items()}
        for details in (
            signature.get_input_details(),
            signature.get_output_details(),
        )
    )

    def run(images):
        inputs = {indices[n]: x for n, x in _named(images).items()}
        shapes = {
            tensor["index"]: tuple(tensor["shape"])
            for tensor in interpreter.get_input_details()
        }
        if shapes != {i: x.shape for i, x in inputs.items()}:
            for i, x in inputs.items():
                interpreter.resize_tensor_input(i, x.shape)
            interpreter.allocate_tensors()
        for i, x in inputs.items():
            interpreter.set_tensor(i, x)
        interpreter.invoke()
        return _single(
            {name: interpreter.get_tensor(i) for name, i in outputs.items()}
        )

    return f"LiteRT {version}", run


def _write_openvino(job, path):
    import openvino

    saved = path.with_name("saved_model")
    serving.save(job.model, saved)
    path.mkdir()
    model = openvino.convert_model(str(saved))
    if job.precision == "int8":
        model = _quantized_openvino(model, job.calibration)
    for images in model.get_parameters():
        if len(images.partial_shape) == 4:
            images.layout = openvino.Layout("NHWC")
    for name, value in job.facts().items():
        model.set_rt_info(json.dumps(value), ["preprocessing", name])
    _save_openvino(model, path / "model.xml", job.precision == "float16")


def _quantized_openvino(model, calibration):
    """Quantises as `_quantized_onnx` does: weights of seven bits, too."""
    import nncf

    nncf.set_log_level(logging.ERROR)
    inputs = list(one_by_one(calibration))
    return nncf.quantize(
        model,
        nncf.Dataset(inputs),
        subset_size=len(inputs),
        advanced_parameters=nncf.AdvancedQuantizationParameters(
            overflow_fix=nncf.OverflowFix.ENABLE
        ),
    )


def _save_openvino(model, path, compress=False):
    import openvino

    try:
        openvino.save_model(model, path, compress_to_fp16=compress)
    except RuntimeError as error:  # all that its C++ streams say
        raise OSError(f"OpenVINO could not write it: {error}") from error


def _load_openvino(path):
    import openvino

    # Where the CPU can, the default is bfloat16, with differences of 1 %.
    compiled = openvino.Core().compile_model(
        path / "model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    version = openvino.__version__.partition("-")[0]
    return f"OpenVINO {version}", lambda images: _single(
        {
            name: array
            for y, array in compiled(_named(images)).items()
            for name in y.get_names()
        }
    )


FORMATS = {
    "saved_model": Format(
        _write_saved_model,
        _load_saved_model,
        "saved_model",
        ("float32", "bfloat16", "float16"),
        """\
import tensorflow as tf
run = tf.saved_model.load("{path}").signatures["serving_default"]
outputs = run(tf.constant(images))["outputs"].numpy()""",
        holds="saved_model.pb",
    ),
    "onnx": Format(
        _write_onnx,
        _load_onnx,
        "model.onnx",
        ("float32", "float16", "int8"),
        """\
import onnxruntime
session = onnxruntime.InferenceSession("{path}")
outputs = session.run(None, {{"images": images}})[0]""",
        packages=("tf2onnx", "onnx", "onnxruntime"),
    ),
    "litert": Format(
        _write_litert,
        _load_litert,
        "model.tflite",
        ("float32", "float16", "int8"),
        """\
from ai_edge_litert.interpreter import Interpreter
run = Interpreter("{path}", num_threads=2).get_signature_runner()
outputs = run(images=images)["outputs"]""",
        packages=("ai_edge_litert",),
    ),
    "openvino": Format(
        _write_openvino,
        _load_openvino,
        "openvino",
        ("float32", "float16", "int8"),
        """\
import openvino
hint = {{"INFERENCE_PRECISION_HINT": "f32"}}  # as it was compared
model = openvino.compile_model("{path}/model.xml", "CPU", hint)
outputs = model({{"images": images}})["outputs"]""",
        holds="model.xml",
        packages=("openvino",),
        quantizer=("nncf",),
    ),
}


def load(path):
    """Loads any artifact that `keras_resnext.export.export` wrote.

    Args:
        path: Of the file or folder, `pathlib.Path`: a `.onnx` or `.tflite`
            file, OpenVINO's folder, or the folder of a SavedModel's version.

    Returns:
        The runtime's name, and a function from images to outputs, both NumPy
        arrays.

    Raises:
        ValueError: If `path` is nothing of these.
    """
    kinds = FORMATS.values()
    files = [kind.ending for kind in kinds if not kind.holds]
    folders = [kind.holds for kind in kinds if kind.holds]
    found = [kind for kind in kinds if kind.is_at(path)]
    require(
        bool(found),
        f"An artifact must be a {' or '.join(files)} file, or a folder with "
        + " or ".join(folders),
        "Pass what an export wrote.",
        path=str(path),
    )
    return found[0].load(path)
