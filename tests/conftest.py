"""What tests share."""

import os
import signal
import subprocess
import sys

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

import keras_resnext  # noqa: F401 (before Keras, as users should)

# isort: split
import pytest

# A run in the background ignores Ctrl-C, and so would all that tests start.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


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
