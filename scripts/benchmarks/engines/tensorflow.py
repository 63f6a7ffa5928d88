"""TensorFlow on our SavedModel."""

import concurrent.futures
import math
import os

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


def session(task, inter_op, intra_op, **options):
    """A SavedModel in a session, as TensorFlow Serving runs it.

    `inter_op` and `intra_op` are numbers of threads, 0 TensorFlow's default;
    `options` those of `_session`.
    """
    call = _session(task, "float32", inter_op, intra_op, **options)
    return _from_clients(task, call)


def compiled(task):
    """A SavedModel that XLA has compiled as a whole."""
    import tensorflow as tf

    path = str(tasks.artifact(task, "saved_model", "float32"))
    signature = tf.saved_model.load(path).signatures["serving_default"]

    @tf.function(jit_compile=True, autograph=False)
    def call(images):
        return signature(images)["outputs"]

    return _from_clients(task, lambda images: call(images).numpy())


def _from_clients(task, call):
    """Returns a function in which the task's clients call at once."""
    images = tasks.images(task)
    clients = concurrent.futures.ThreadPoolExecutor(task.clients)

    def run():
        answers = clients.map(call, [images] * task.clients)
        return list(answers)[-1]

    return run


def session_in_shares(task, precision):
    """The same, but every processor works alone on a share of the images.

    No operation then waits for another processor. A share has at most 8
    images.
    """
    call = _session(task, precision, tasks.THREADS, 1)
    images = tasks.images(task)
    count = max(tasks.THREADS, math.ceil(len(images) / 8))
    shares = np.array_split(images, min(count, len(images)))
    clients = concurrent.futures.ThreadPoolExecutor(tasks.THREADS)
    return lambda: np.concatenate(list(clients.map(call, shares)))


def _session(
    task, precision, inter_op, intra_op, own_thread=False, clusters=False
):
    """Returns the function of a SavedModel in a session.

    With `own_thread` the caller's thread starts the operations, with
    `clusters` XLA compiles those that follow each other.
    """
    if clusters:  # read when TensorFlow is loaded
        os.environ["TF_XLA_FLAGS"] = "--tf_xla_cpu_global_jit"
    import tensorflow as tf

    tf1 = tf.compat.v1
    config = tf1.ConfigProto(
        inter_op_parallelism_threads=inter_op,
        intra_op_parallelism_threads=intra_op,
    )
    if clusters:
        level = tf1.OptimizerOptions.ON_2
        config.graph_options.optimizer_options.global_jit_level = level
    running = tf1.Session(graph=tf.Graph(), config=config)
    path = str(tasks.artifact(task, "saved_model", precision))
    loaded = tf1.saved_model.load(running, ["serve"], path)
    signature = loaded.signature_def["serving_default"]
    outputs = signature.outputs["outputs"].name
    images = signature.inputs["images"].name
    if not own_thread:
        return running.make_callable(outputs, [images])
    options = tf1.RunOptions(inter_op_thread_pool=-1)
    return lambda x: running.run(outputs, {images: x}, options)
