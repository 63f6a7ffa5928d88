"""What is known of the processor, and oneDNN asked for where it helps."""

import os
import platform
import subprocess
import sys
import warnings

import keras
import pytest

from keras_resnext import processor

VARIABLE = "TF_ENABLE_ONEDNN_OPTS"
AVX2 = {"sse2", "avx", "avx2"}


@pytest.fixture
def machine(monkeypatch):
    """Pretends a processor, and that Keras and TensorFlow are not loaded."""

    def pretend(flags, loaded=False):
        monkeypatch.setattr(processor, "flags", lambda: frozenset(flags))
        if not loaded:
            monkeypatch.delitem(sys.modules, "tensorflow", raising=False)
            monkeypatch.delitem(sys.modules, "keras")

    # Set first, so that it is put back whatever a test does to it.
    monkeypatch.setenv(VARIABLE, "0")
    monkeypatch.delenv(VARIABLE)
    monkeypatch.setenv("KERAS_BACKEND", "tensorflow")
    return pretend


@pytest.mark.parametrize(
    "flags, name, bfloat16",
    [
        (set(), "unknown", False),
        ({"avx"}, "AVX", False),
        (AVX2, "AVX2", False),
        (AVX2 | {"avx_vnni"}, "AVX2 with VNNI", False),
        (AVX2 | {"avx512f"}, "AVX-512", False),
        (AVX2 | {"avx512f", "avx512_vnni"}, "AVX-512 with VNNI", False),
        (AVX2 | {"avx512f", "avx512_bf16"}, "AVX-512 with bfloat16", True),
        (AVX2 | {"avx512_bf16", "amx_tile", "amx_bf16"}, "AMX", True),
    ],
)
def test_kinds(machine, flags, name, bfloat16):
    machine(flags)
    assert processor.instruction_set() == name
    assert processor.computes_bfloat16() == bfloat16


def test_this_machine():
    if sys.platform == "linux" and platform.machine() == "x86_64":
        assert {"fpu", "sse2"} <= processor.flags()
    else:
        assert processor.instruction_set() == "unknown"


def test_asks_for_onednn(machine):
    machine(AVX2)
    processor.use_onednn()
    assert os.environ[VARIABLE] == "1"


@pytest.mark.parametrize("extra", ["avx512_vnni", "avx_vnni", "amx_int8"])
def test_leaves_processors_that_have_it_on(machine, extra):
    machine(AVX2 | {extra})
    processor.use_onednn()
    assert VARIABLE not in os.environ


@pytest.mark.parametrize("flags", [set(), {"avx"}])
def test_leaves_processors_that_are_unknown(machine, flags):
    machine(flags)
    processor.use_onednn()
    assert VARIABLE not in os.environ


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_leaves_other_backends(machine, monkeypatch, backend):
    monkeypatch.setenv("KERAS_BACKEND", backend)
    machine(AVX2)
    processor.use_onednn()
    assert VARIABLE not in os.environ


@pytest.mark.parametrize(
    "variable, text, backend",
    [
        (None, None, "tensorflow"),
        ("", None, "tensorflow"),
        (None, '{"backend": "jax"}', "jax"),
        ("", '{"backend": "jax"}', "jax"),
        ("torch", '{"backend": "jax"}', "torch"),
        (None, '{"floatx": "float32"}', "tensorflow"),
        (None, "[1]", "tensorflow"),
        (None, "{", "tensorflow"),
    ],
)
def test_the_backend_is_found_as_keras_does(
    machine, monkeypatch, tmp_path, variable, text, backend
):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    if text is not None:
        (tmp_path / "keras.json").write_text(text)
    if variable is None:
        monkeypatch.delenv("KERAS_BACKEND")
    else:
        monkeypatch.setenv("KERAS_BACKEND", variable)
    machine(AVX2)
    assert processor.chosen_backend() == backend
    processor.use_onednn()
    assert (VARIABLE in os.environ) == (backend == "tensorflow")


def test_a_user_without_a_home(machine, monkeypatch, tmp_path):
    """Where TensorFlow has made a folder that is called `~`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "~").mkdir()
    monkeypatch.delenv("KERAS_HOME", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    assert processor.keras_home() == os.path.join("/tmp", ".keras")
    machine(AVX2)
    processor.use_onednn()  # which looks there


@pytest.mark.parametrize("value", ["0", "1"])
def test_leaves_what_a_person_has_set(machine, monkeypatch, value):
    monkeypatch.setenv(VARIABLE, value)
    for loaded in (False, True):  # and warns of nothing
        machine(AVX2, loaded)
        processor.use_onednn()
        assert os.environ[VARIABLE] == value


@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="about TensorFlow"
)
def test_warns_where_it_is_too_late(machine):
    machine(AVX2, loaded=True)
    with pytest.warns(UserWarning, match=f"Set {VARIABLE}=1 before") as found:
        processor.use_onednn()
    assert len(found) == 1
    assert VARIABLE not in os.environ
    machine(AVX2 | {"avx512_vnni"}, loaded=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        processor.use_onednn()


@pytest.mark.slow
@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="about TensorFlow"
)
@pytest.mark.parametrize("first", ["keras_resnext", "keras"])
def test_in_a_process(first):
    """What TensorFlow really does, by the order of the imports."""
    flags = processor.flags()
    environment = {k: v for k, v in os.environ.items() if k != VARIABLE}
    result = subprocess.run(
        [
            *(sys.executable, "-c"),
            f"import {first}, keras_resnext\n"
            "from tensorflow.python.framework import test_util\n"
            "print(test_util.IsMklEnabled())",
        ],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    by_default = bool(processor._ONEDNN_BY_DEFAULT & flags)
    asked = "avx2" in flags and first == "keras_resnext"
    late = "avx2" in flags and not by_default and first == "keras"
    if flags:  # else this says nothing of the machine
        assert result.stdout.split()[-1] == str(by_default or asked)
    assert result.stderr.count(f"Set {VARIABLE}=1") == late
