"""The operations that TensorFlow runs when it serves an export, counted.

What they cost is measured by `scripts/benchmark.py`; that none comes back
which has been got rid of is tested here.
"""

import collections

import keras
import numpy as np
import pytest

import keras_resnext
from keras_resnext import processor
from keras_resnext.export import export, fold
from keras_resnext.layers import _trains_directly

if keras.backend.backend() != "tensorflow":
    pytest.skip("export is TensorFlow's", allow_module_level=True)
import tensorflow as tf

from keras_resnext.commands import random_weights

# Of a stem and four blocks, two of them with a projection: 1 + 4 * 3 + 2
# convolutions, four of them grouped.
TOP = {"MaxPool": 1, "Mean": 1, "MatMul+BiasAdd": 1, "Softmax": 1}
EXPECTED = {
    # Each convolution is one operation with all that follows.
    "onednn": TOP
    | {
        "Conv2D+BiasAdd+Relu": 9,
        "Conv2D+BiasAdd+Add+Relu": 4,
        "Conv2D+BiasAdd": 2,  # one of the two sides of a sum
        "Pad": 1,  # the pooling's; the others are part of the convolutions
    },
    # Eigen has no fused convolution with groups, and none with a sum.
    "eigen": TOP
    | {
        "Conv2D+BiasAdd+Relu": 5,
        "Conv2D+BiasAdd": 6,
        "Conv2D": 4,
        "AddV2": 4 + 4,  # the grouped ones' biases, and the sums
        "Relu": 4 + 4,
        "Pad": 3,
    },
    # It fuses nothing in bfloat16.
    "eigen, bfloat16": TOP
    | {"Conv2D": 15, "BiasAdd": 11, "AddV2": 8, "Relu": 13, "Pad": 3},
}
# They take no time.
IGNORED = {"Const", "EnsureShape", "IdentityN", "_Arg", "_Retval"}


@pytest.fixture(scope="module")
def model():
    made = keras_resnext.ResNeXt((2, 2), 4, input_shape=(64, 64, 3), classes=10)
    random = np.random.default_rng(0)
    return random_weights.fill(made, random.normal(size=(4, 64, 64, 3)))


def served_nodes(path, images):
    """Runs a SavedModel in a session; returns the nodes that it ran."""
    v1 = tf.compat.v1
    with v1.Session(graph=tf.Graph()) as session:
        loaded = v1.saved_model.load(session, ["serve"], str(path))
        signature = loaded.signature_def["serving_default"]
        (outputs,) = signature.outputs.values()
        (inputs,) = signature.inputs.values()
        facts = v1.RunMetadata()
        session.run(
            outputs.name,
            {inputs.name: images},
            v1.RunOptions(output_partition_graphs=True),
            facts,
        )
    (graph,) = facts.partition_graphs
    return [
        *graph.node,
        *(n for f in graph.library.function for n in f.node_def),
    ]


def kind(node):
    """Names an operation and what is fused with it, oneDNN's or not."""
    name = node.op.removeprefix("_").removeprefix("MklNative")
    name = name.removeprefix("Mkl").replace("PadWith", "").replace("Fused", "")
    fused = [op.decode() for op in node.attr["fused_ops"].list.s]
    return "+".join([name, *fused])


def served(path):
    """Counts the operations by `kind`."""
    nodes = served_nodes(path, np.zeros((1, 64, 64, 3), "float32"))
    assert not any("_XlaMustCompile" in node.attr for node in nodes)
    return collections.Counter(
        kind(node) for node in nodes if node.op not in IGNORED
    )


def predictions(model, path):
    """Saves what `predict_on_batch` of a folded model runs."""
    spec = tf.TensorSpec(model.inputs[0].shape, tf.float32, "images")
    run = tf.function(
        lambda images: {"outputs": model.predict_step((images,))},
        input_signature=[spec],
    )
    tf.saved_model.save(tf.Module(), str(path), signatures=run)
    return path


@pytest.mark.parametrize("form", ["served", "folded"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_operations_in_inference(model, tmp_path, precision, form):
    if form == "served":
        report = export(model, tmp_path, precision=precision)
        emulated = precision == "bfloat16" and not processor.computes_bfloat16()
        assert ("bfloat16 is emulated here" in str(report)) == emulated
        path = report.path
    else:
        path = predictions(fold(model, precision), tmp_path)
    expected = "onednn"
    if not _trains_directly(precision):
        expected = "eigen, bfloat16" if precision == "bfloat16" else "eigen"
    # Twice: what comes in, and what goes out.
    casts = {"Cast": 2} if precision == "bfloat16" else {}
    # So no Xla* and no Transpose.
    assert served(path) == EXPECTED[expected] | casts


def test_operations_of_the_model_itself(model, tmp_path):
    """What `predict` runs, whose weights are variables."""
    model.export(tmp_path / "model", verbose=False)
    found = served(tmp_path / "model")
    # What normalises is part of the convolution's kernel and bias, never an
    # operation behind it: without AVX-512 oneDNN takes seconds for that.
    assert not any("FusedBatchNorm" in name for name in found)
    assert not any("Transpose" in name or "Xla" in name for name in found)
    found = {name: found[name] for name in found if "Conv2D" in name}
    if _trains_directly():
        # A sum is part of one of its two sides, but not the ReLU behind it,
        # with which one picture would take far longer.
        assert found == {
            "Conv2D+BiasAdd+Relu": 9,
            "Conv2D+BiasAdd+Add": 4,
            "Conv2D+BiasAdd": 2,
        }
    else:
        assert found == {
            "Conv2D+BiasAdd+Relu": 5,
            "Conv2D+BiasAdd": 6,
            "Conv2D": 2 * 1 + 2 * 2,  # 4 and 2 groups of 4 put together
        }
