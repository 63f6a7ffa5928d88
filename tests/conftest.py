"""What tests share."""

import gc
import math
import os
import signal
import subprocess
import sys

import pytest

# Else OpenVINO's converter reports each model to its maker, in threads that
# take seconds of every export.
os.environ.setdefault("CI", "true")
# Tests side by side have the processors already: with threads of its own for
# each, every one of them takes a sixth more of their time.
if "PYTEST_XDIST_WORKER" in os.environ:
    for variable in (
        "OMP_NUM_THREADS",
        "TF_NUM_INTEROP_THREADS",
        "TF_NUM_INTRAOP_THREADS",
    ):
        os.environ.setdefault(variable, "1")

# A run in the background ignores Ctrl-C, and so would all that tests start.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config):
    """Imports what takes seconds, but for what only hands out the tests."""
    if getattr(config.option, "numprocesses", None):
        return
    import keras_resnext  # noqa: F401 (before Keras, as users should)

    # It stays: a search for garbage need not go through it each time.
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def quick_kernels():
    """Lets NumPy draw kernels, of the same seed and about as wide.

    Most of what it takes to build a network is to draw millions of numbers,
    which JAX compiles anew for every shape. Gives Keras's own function.
    """
    import keras
    import numpy as np

    scaled = keras.initializers.VarianceScaling

    def draw(self, shape, dtype=None):
        random = np.random.default_rng(self.seed)
        kernel = random.standard_normal(shape, dtype="float32")
        kernel *= math.sqrt(self.scale / math.prod(shape[:-1]))
        return keras.ops.convert_to_tensor(kernel, dtype)

    own = scaled.__call__
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scaled, "__call__", draw)
        yield own


@pytest.fixture(scope="session", autouse=True)
def no_tuning():
    """Lets `tf.data` not tune itself, as it may sleep at the end of an epoch.

    See "The end of an epoch" in docs/speed.md.
    """
    import keras

    if keras.backend.backend() != "tensorflow":
        yield
        return
    import tensorflow as tf

    options = tf.data.Options()
    options.autotune.enabled = False
    begin = tf.data.Dataset.__iter__
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            tf.data.Dataset,
            "__iter__",
            lambda dataset: begin(dataset.with_options(options)),
        )
        yield


@pytest.fixture
def unallocated():
    """Leaves all weights without memory: the largest would take 3.3 GB."""
    import keras

    with keras.StatelessScope(initialize_variables=False):
        yield
    keras.utils.clear_session()  # forgets the variables left uninitialised


@pytest.fixture
def eagerly(monkeypatch):
    """Lets `fit`, `predict` and `evaluate` run models as they are.

    TensorFlow takes longer to trace a small network than to run it, and each
    copy of a network is traced anew.
    """
    import keras

    if keras.backend.backend() == "tensorflow":
        always = property(lambda self: True, lambda self, value: None)
        monkeypatch.setattr(keras.Model, "run_eagerly", always)


@pytest.fixture
def small_training(monkeypatch, eagerly):
    """Has `train.py` train a network of one block, for what is around it."""
    import keras_resnext
    from training import models

    def build(args, recipe, classes):
        return keras_resnext.ResNeXt(
            (1,),
            *(2, 4),
            stem="cifar",
            input_shape=(None, None, 3),
            classes=classes,
            classifier_activation=None,
        )

    monkeypatch.setattr(models, "build", build)


@pytest.fixture(scope="session")
def on_jax(tmp_path_factory):
    """The environment of processes on JAX that compute little.

    XLA takes most of their time to compile what runs once. Here it optimises
    less, and the next process finds what the one before has compiled: both
    change how fast the code runs, not what it is to compute.
    """
    return {
        "KERAS_BACKEND": "jax",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("jax")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


@pytest.fixture
def run_here(monkeypatch, capsys):
    """Gives what runs a command's `main` here, where that is what is tested.

    It returns what a process of its own would have, which takes seconds only
    to import TensorFlow. What would be a traceback there is raised here.
    """

    def run(main, *words):
        words = [main.__module__, *map(str, words)]
        monkeypatch.setattr(sys, "argv", words)
        capsys.readouterr()
        status = None
        try:
            main()
        except SystemExit as end:
            status = end.code
        output, errors = capsys.readouterr()
        if isinstance(status, str):
            status, errors = 1, f"{errors}{status}\n"
        return subprocess.CompletedProcess(words, status or 0, output, errors)

    return run
