"""TensorFlow on our SavedModel."""

import concurrent.futures
import math

import numpy as np

from benchmarks import tasks


def saved_model(task, precision):
    """TensorFlow on our export, loaded without any option."""
    import tensorflow as tf

    path = str(tasks.artifact(task, "saved_model", precision))
    model, images = tf.saved_model.load(path), tasks.images(task)

    def run(model=model):  # else its variables are collected
        call = model.signatures["serving_default"]
        return call(tf.constant(images))["outputs"].numpy()

    return run


def session(task, inter_op, intra_op):
    """A SavedModel in a session, as TensorFlow Serving runs it.

    `inter_op` and `intra_op` are numbers of threads, 0 TensorFlow's default.
    """
    call = _session(task, "float32", inter_op, intra_op)
    images = tasks.images(task)
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
    call = _session(task, precision, tasks.THREADS, 1)
    images = tasks.images(task)
    count = max(tasks.THREADS, math.ceil(len(images) / most))
    shares = np.array_split(images, min(count, len(images)))
    clients = concurrent.futures.ThreadPoolExecutor(tasks.THREADS)
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
    path = str(tasks.artifact(task, "saved_model", precision))
    loaded = tf1.saved_model.load(running, ["serve"], path)
    signature = loaded.signature_def["serving_default"]
    return running.make_callable(
        signature.outputs["outputs"].name, [signature.inputs["images"].name]
    )
