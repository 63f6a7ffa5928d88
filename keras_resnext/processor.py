"""What the processor has for neural networks, and asks TensorFlow to use it.

Imports nothing but the standard library: it runs before Keras is loaded.
"""

import functools
import json
import os
import pathlib
import platform
import sys
import warnings

# From the best to the least: a name, and Linux's flags of which one tells it.
_KINDS = {
    "AMX": {"amx_tile", "amx_int8", "amx_bf16"},
    "AVX-512 with bfloat16": {"avx512_bf16"},
    "AVX-512 with VNNI": {"avx512_vnni"},
    "AVX-512": {"avx512f"},
    "AVX2 with VNNI": {"avx_vnni"},
    "AVX2": {"avx2"},
    "AVX": {"avx"},
}
# With one of these TensorFlow switches oneDNN on by itself.
_ONEDNN_BY_DEFAULT = {
    *("avx512_vnni", "avx512_bf16", "avx_vnni"),
    *_KINDS["AMX"],
}


@functools.cache
def facts():
    """Returns what Linux says of the first processor, or an empty dict."""
    try:
        text = pathlib.Path("/proc/cpuinfo").read_text()
    except OSError:
        return {}
    lines = (line.partition(":") for line in text.splitlines())
    pairs = [(key.strip(), value.strip()) for key, _, value in lines]
    return dict(reversed(pairs))  # of several the first


def flags():
    """Returns the x86 processor's features in Linux's words.

    A frozenset; empty on other systems and processors, where it is unknown.
    """
    return frozenset(facts().get("flags", "").split())


def name():
    """Names the processor, as "AMD EPYC 7B13", or what kind it is of."""
    return (
        facts().get("model name") or platform.processor() or platform.machine()
    )


def instruction_set():
    """Names the best instructions, as "AVX2"; "unknown" off x86 Linux."""
    for kind, any_of in _KINDS.items():
        if any_of & flags():
            return kind
    return "unknown"


def computes_bfloat16():
    """Tells whether the processor itself computes in bfloat16.

    Elsewhere it is emulated, several times slower than float32. Where nothing
    is known of the processor the answer is no.
    """
    return bool({"avx512_bf16", "amx_bf16"} & flags())


def use_onednn():
    """Has TensorFlow compute with oneDNN where that is faster.

    By itself it does on newer processors only; with AVX2 alone everything
    takes about twice as long. Nothing changes where the person has set
    `TF_ENABLE_ONEDNN_OPTS`, on other systems, and on Keras's other backends.
    Where TensorFlow has been loaded it is too late, which a warning says.
    """
    variable = "TF_ENABLE_ONEDNN_OPTS"
    if (
        variable in os.environ
        or "avx2" not in flags()
        or _ONEDNN_BY_DEFAULT & flags()
        or _backend() != "tensorflow"
    ):
        return
    if "tensorflow" not in sys.modules:
        os.environ[variable] = "1"
        return
    warnings.warn(
        "TensorFlow must be loaded with oneDNN on to be fast on this "
        f"processor. Received: {instruction_set()}, and oneDNN off. Set "
        f"{variable}=1 before Python starts, or import keras_resnext before "
        "keras and tensorflow.",
        stacklevel=3,
    )


def _backend():
    """Returns Keras's backend, without loading Keras."""
    keras = sys.modules.get("keras")
    return chosen_backend() if keras is None else keras.backend.backend()


def chosen_backend():
    """Returns the backend that Keras takes when it is loaded.

    As Keras does, it looks at `KERAS_BACKEND`, then at its keras.json.
    """
    try:
        text = pathlib.Path(keras_home(), "keras.json").read_text()
        configured = json.loads(text).get("backend")
    except (OSError, ValueError, AttributeError):  # none, or no such file
        configured = None
    return os.environ.get("KERAS_BACKEND") or configured or "tensorflow"


def keras_home():
    """Returns the folder of Keras's settings and files, by its own rule."""
    home = os.path.expanduser("~")  # "~" still, for a user without a home
    if home == "~" or not os.access(home, os.W_OK):
        home = "/tmp"
    folder = os.environ.get("KERAS_HOME", os.path.join(home, ".keras"))
    return os.path.expanduser(folder)
