"""Keeps a training's place on disk, so that it survives `kill -9`."""

import contextlib
import dataclasses
import json
import signal
import threading

import keras
import numpy as np
from keras import ops

from common import files
from training import recipes

_DEFAULTS = {
    field.name: (
        list(field.default)
        if isinstance(field.default, tuple)
        else field.default
    )
    for field in dataclasses.fields(recipes.Recipe)
}
# Options that are about the content of what --data and --weights name.
PICTURES, WEIGHTS = "pictures_digest", "weights_digest"
_CONTENTS = {
    PICTURES: "other pictures or classes in --data",
    WEIGHTS: "another file of --weights",
}
_FORMER = {"pictures_and_classes"}  # was about files' names and sizes
_FIELDS = {
    **dict.fromkeys(("phase", "epoch", "step"), int),
    **dict.fromkeys(("seconds", "waited"), (int, float)),
    "rows": list,
    "options": dict,
}


class Run:
    """Where a training stands; begins where an earlier one was stopped.

    Attributes:
        phase: Number of the phase, from 0.
        epoch: Number of complete epochs, over all phases.
        step: Number of complete steps in the next epoch.
        seconds: Time spent in training.
        waited: Part of it that was spent waiting for data.
        rows: What was logged for each epoch, a list of dictionaries.
        arrays: Values of all variables, or `None` at the very beginning.
        features: Path of the features that are computed once.
        interrupted: Whether Ctrl-C was pressed in an epoch.
    """

    def __init__(self, folder, options):
        """Reads what an earlier run has left.

        Args:
            folder: Where it is kept, as `state.npz`.
            options: Dictionary of all that the result depends on.

        Raises:
            ValueError: If the options are not those of the earlier run.
        """
        self.path, self.options = folder / "state.npz", options
        self.phase, self.epoch, self.step = 0, 0, 0
        self.seconds, self.waited = 0.0, 0.0
        self.rows, self.arrays = [], None
        self.features, self.interrupted = folder / "features.npz", False
        if not self.path.exists():
            return
        about, self.arrays = _read(self.path)
        # An option that is newer than the run had its default then.
        changed = _changes(about.pop("options"), options)
        if changed:
            raise ValueError(
                "A training goes on with the options it began with. Received: "
                f"{'; '.join(changed)} in {folder}. Pass the old ones, or "
                "another --out."
            )
        vars(self).update(about)

    def capture(self, variables):
        """Takes the variables' values into `arrays`."""
        self.arrays = [_storable(ops.convert_to_numpy(v)) for v in variables]

    def restore(self, variables):
        """Gives the variables the values in `arrays`.

        Raises:
            ValueError: If these are the values of other variables.
        """
        shapes = [array.shape for array in self.arrays]
        if shapes != [tuple(variable.shape) for variable in variables]:
            raise ValueError(
                "A training goes on from its own state. Received: "
                f"{self.path}, which is that of another network. Pass another "
                "--out, or remove the file to begin anew."
            )
        for variable, array in zip(variables, self.arrays, strict=True):
            variable.assign(array)

    def write(self, **now):
        """Writes everything to disk.

        Args:
            **now: Attributes with another value on disk than here.
        """
        about = {name: now.get(name, getattr(self, name)) for name in _FIELDS}
        arrays = {str(i): array for i, array in enumerate(self.arrays)}
        files.write(
            self.path,
            lambda file: np.savez(file, about=json.dumps(about), **arrays),
        )

    def read_features(self):
        """Returns what `write_features` has written, or `None`."""
        try:
            with open(self.features, "rb") as raw, np.load(raw) as file:
                if json.loads(str(file["options"])) == self.options:
                    return {n: file[n] for n in ("train", "test", "seconds")}
        except Exception:  # what is damaged is computed again
            pass
        return None

    def write_features(self, arrays):
        """Writes features, for a training with the same options."""
        self.features.parent.mkdir(parents=True, exist_ok=True)
        options = json.dumps(self.options)
        files.write(
            self.features,
            lambda file: np.savez(file, options=options, **arrays),
        )

    @contextlib.contextmanager
    def interruptible(self):
        """Lets Ctrl-C wait for the end of a step, whose state `Saver` writes.

        Pressed once more it waits for nothing.
        """

        def note(number, frame):
            self.interrupted = True
            signal.signal(signal.SIGINT, signal.default_int_handler)

        if threading.current_thread() is not threading.main_thread():
            yield  # Python leaves signals to that one
            return
        before = signal.signal(signal.SIGINT, note)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)


def _storable(array):
    """Returns a copy of an array that NumPy can read from a file.

    It cannot read bfloat16, all numbers of which float32 has.
    """
    return array.astype("float32" if array.dtype.kind == "V" else array.dtype)


def _changes(earlier, options):
    """Returns a phrase for each option that is not what it was.

    An option that is newer than the earlier run had its default then. Where
    the pictures themselves can be compared, their place does not count.
    """
    names = (earlier.keys() | options) - _FORMER
    names -= _CONTENTS.keys() - earlier  # newer than the run, too
    if PICTURES in names and not str(options.get("data")).startswith("tfds:"):
        names -= {"data"}
    pairs = {
        name: (earlier.get(name, _DEFAULTS.get(name)), options.get(name))
        for name in sorted(names)
    }
    return [
        _CONTENTS.get(name, f"{name} was {old!r} and is {new!r}")
        for name, (old, new) in pairs.items()
        if old != new
    ]


def _read(path):
    """Returns what a state is about, and the values of all variables."""
    try:
        with open(path, "rb") as opened, np.load(opened) as file:
            about = json.loads(str(file["about"]))
            arrays = [file[str(i)] for i in range(len(file.files) - 1)]
        for name, kind in _FIELDS.items():
            if not isinstance(about[name], kind):
                raise TypeError(f"{name} is {about[name]!r}")
        return {name: about[name] for name in _FIELDS}, arrays
    except MemoryError:
        raise
    except Exception as error:  # of zipfile, zlib, NumPy, JSON, the system
        raise ValueError(
            "A training goes on from its own state. Received: "
            f"{path}, which is none ({error}). Pass another --out, or remove "
            "the file to begin anew."
        ) from error


class Saver(keras.callbacks.Callback):
    """Writes a run's state after every so many steps.

    Attributes:
        run: A `Run`.
        variables: All that training changes.
        every: Number of steps between two states.
        clock: Function of no arguments that returns `Run`'s `seconds` and
            `waited`, as a dictionary.
    """

    def __init__(self, run, variables, every, clock):
        """Takes the attributes."""
        super().__init__()
        self.run, self.variables = run, variables
        self.every, self.clock = every, clock

    def on_epoch_begin(self, epoch, logs=None):
        """Goes on in mid-epoch; `fit` has just set all metrics to zero."""
        if self.run.step:
            self.run.restore(self.variables)

    def on_train_batch_end(self, batch, logs=None):
        """Writes the state where it is time to."""
        step = self.run.step + batch + 1
        steps = self.run.step + self.params["steps"]
        if step == steps:  # the end has its own
            return
        if step % self.every == 0 or self.run.interrupted:
            self._capture()
            self.run.write(step=step, **self.clock())
        if self.run.interrupted:
            raise KeyboardInterrupt

    def on_epoch_end(self, epoch, logs=None):
        """Takes the weights before `fit` puts their average in place."""
        # A new process would count on: its first `fit` resets no metric that
        # it has not used before.
        self.model.reset_metrics()
        self._capture()

    def _capture(self):
        self.model  # noqa: B018, makes JAX hand out its values
        self.run.capture(self.variables)
