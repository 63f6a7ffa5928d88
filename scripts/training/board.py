"""Writes what TensorBoard shows: curves, the graph, hyper-parameters.

One file for each run, which is in a folder of its own as with Keras's callback:
`train` and `validation`; the folder of both has the hyper-parameters.
"""

import json
import re
import time

from common import files

_FILE = "events.out.tfevents.0"


class Board:
    """Files of a training for TensorBoard, which may be open meanwhile.

    They begin anew with each process, with what the log has already, so that a
    training that was killed has each epoch once. Written as they come, and not
    in a thread, so that a full disk is noticed.
    """

    def __init__(self, folder, run, network):
        """Writes the files.

        Args:
            folder: Where they are to be.
            run: The `resume.Run`, for its options and rows.
            network: The network whose graph is shown.
        """
        self.folder, self._start = folder, time.time() - run.seconds
        begin = {
            ".": [_hyperparameters(run.options, self._start)],
            "train": [_graph(network)],
            "validation": [],
        }
        for name, events in begin.items():
            place = folder / name / _FILE
            place.parent.mkdir(parents=True, exist_ok=True)
            events.insert(0, {"file_version": "brain.Event:2"})
            for row in run.rows[: run.epoch]:  # not yet one without its test
                events += self._curves(row).get(name, [])
            files.write(place, lambda file, e=events: self._append(file, e))

    def add(self, row):
        """Adds one epoch's numbers."""
        for name, events in self._curves(row).items():
            with open(self.folder / name / _FILE, "ab") as file:
                self._append(file, events)

    def _curves(self, row):
        """Returns the events of a row of the log, by run."""
        from tensorboard.plugins.scalar.summary_v2 import scalar_pb

        found = {"train": [], "validation": []}
        for name, value in row.items():
            tag = name.removeprefix("val_")
            if name not in ("epoch", "seconds"):
                run = "train" if tag == name else "validation"
                found[run].append(
                    {
                        "summary": scalar_pb(tag, value),
                        "step": row["epoch"],
                        "wall_time": self._start + row["seconds"],
                    }
                )
        return found

    def _append(self, file, events):
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        writer = RecordWriter(file)
        for event in events:
            event = Event(**({"wall_time": self._start} | event))
            writer.write(event.SerializeToString())


def _hyperparameters(options, start):
    """Returns the event for TensorBoard's table of trainings."""
    from tensorboard.plugins.hparams.summary_v2 import hparams_pb

    plain = {
        name: value
        if isinstance(value, (bool, int, float))
        # A path may be none that UTF-8 has.
        else str(value).encode(errors="backslashreplace").decode()
        for name, value in options.items()
        if value is not None
    }
    return {"summary": hparams_pb(plain, start_time_secs=start)}


def _graph(model):
    """Returns the event of a network's graph, with blocks to open.

    Stages and blocks are nested: `conv2_block1_1_conv` becomes the node
    `1_conv` in `block1` in `conv2`.
    """
    from tensorboard.plugins.graph.keras_util import keras_model_to_graph_def

    config = json.loads(model.to_json())
    for layer in config["config"]["layers"]:
        # TensorBoard knows no policies of mixed precision.
        layer["config"]["dtype"] = model.get_layer(layer["name"]).compute_dtype
    graph = keras_model_to_graph_def(config)

    def nested(name):
        return re.sub(r"(conv\d+)_(?:(block\d+)_)?", _scope, name)

    for node in graph.node:
        node.name = nested(node.name)
        node.input[:] = [nested(name) for name in node.input]
    return {"graph_def": graph.SerializeToString()}


def _scope(match):
    return "".join(f"{scope}/" for scope in match.groups() if scope)
