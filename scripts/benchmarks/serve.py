"""Asks a prediction service from many clients at once, and times the answers.

The service is TensorFlow Serving where one runs. Else it is the SavedModel in
a session with the threads of that server's documented configurations, behind
the same gRPC interface and in a process of its own; it forms no batches.
"""

import concurrent.futures
import contextlib
import dataclasses
import itertools
import multiprocessing
import time

import numpy as np

from benchmarks import compare, tasks, worker
from common import files
from keras_resnext.commands import console

# From a configuration's name to the threads inside of an operation and the
# operations at once; docs/serving.md has the server's flags for both.
CONFIGURATIONS = {
    "least latency": (tasks.THREADS, 1),
    "most pictures a second": (1, tasks.THREADS),
}
_SIDE = 224  # pixels, of a model that does not say it
_TIMEOUT = 300  # seconds that an answer may take


@dataclasses.dataclass(frozen=True)
class Row:
    """What the clients of one signature saw.

    Attributes:
        service: The server's configuration, or its address.
        signature: Which one was asked.
        clients: Number of clients, each of which waits for its answer.
        seconds: How long all of it took.
        latencies: Of each request of one picture, in milliseconds.
    """

    service: str
    signature: str
    clients: int
    seconds: float
    latencies: list

    @property
    def pictures_per_second(self):
        """Answers of all clients together, in a second."""
        return len(self.latencies) / self.seconds

    def percentile(self, percent):
        """Returns what so many percent of the latencies are not above."""
        return float(np.percentile(self.latencies, percent))


def serve(arguments):
    """Measures pictures/s and latency of a server with many clients."""
    packages = ("tensorflow", "grpc", "tensorflow_serving")
    console.require_packages("export", *packages)
    # Of a server that runs, the folder says no more than the pictures' side.
    known = arguments.grpc and arguments.side
    path = None if known else _newest(arguments.path)
    services = {arguments.grpc: None}
    if not arguments.grpc:
        services = {
            name: (path, *threads) for name, threads in CONFIGURATIONS.items()
        }
    arguments.out.mkdir(parents=True, exist_ok=True)
    side = arguments.side or _side(path)
    requests = _requests(arguments.model, side)
    rows = []
    for name, service in services.items():
        with _running(service) as target:
            ask = _stub(target or name)
            for signature, clients in compare.progress(
                list(itertools.product(requests, arguments.clients)), name
            ):
                row = _measure(
                    ask, requests[signature], clients, arguments.seconds
                )
                rows.append(Row(name, signature, clients, *row))
    facts = compare.machine() | tasks.versions()
    text = f"{compare.describe(facts)}\n\n{table(rows)}\n"
    files.write(arguments.out / "serve.md", text)
    print(text)


def _newest(folder):
    """Returns the version of a servable that a server would take."""
    from keras_resnext.export import serving

    versions = serving.versions(folder)
    if not versions:
        raise ValueError(
            "A folder that `export` wrote as a SavedModel is required. "
            f"Received: {folder}. Write one with `keras-resnext export "
            "resnext50_32x4d --weights random --out served/resnext50`."
        )
    return versions[max(versions)]


def _side(path):
    """Returns the side of the pictures of a model, as far as it says it."""
    from keras_resnext.commands import networks

    said = networks.exported(path)
    return said[0].crop if said else _SIDE


def _requests(model, side):
    """Returns a request of one picture for each signature, by its name."""
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2

    from keras_resnext.export.formats import PICTURES

    inputs = {
        "serving_bytes": ("pictures", [PICTURES[0].read_bytes()]),
        "serving_default": ("images", np.zeros((1, side, side, 3), "float32")),
    }
    requests = {}
    for signature, (name, value) in inputs.items():
        request = predict_pb2.PredictRequest()
        request.model_spec.name = model
        request.model_spec.signature_name = signature
        request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
        requests[signature] = request
    return requests


def _stub(target):
    """Returns a function that sends a request and waits for the answer."""
    import grpc
    from tensorflow_serving.apis import prediction_service_pb2_grpc as service

    stub = service.PredictionServiceStub(grpc.insecure_channel(target))

    def ask(request):
        try:
            return stub.Predict(request, _TIMEOUT)
        except grpc.RpcError as error:
            raise ValueError(
                "A server that answers is required. Received: "
                f"{error.code().name} from {target} ({error.details()}). "
                "Start it, or check --grpc, --model and --side."
            ) from error

    return ask


def _measure(ask, request, clients, seconds):
    """Returns the seconds that passed, and each request's milliseconds."""
    ask(request)  # the first one is slower

    def client(_):
        latencies = []
        while not latencies or time.perf_counter() < end:
            begin = time.perf_counter()
            ask(request)
            latencies.append(1000 * (time.perf_counter() - begin))
        return latencies

    start = time.perf_counter()
    end = start + seconds
    with concurrent.futures.ThreadPoolExecutor(clients) as pool:
        found = list(pool.map(client, range(clients)))
    return time.perf_counter() - start, list(itertools.chain(*found))


@contextlib.contextmanager
def _running(service):
    """Yields the address of a service that runs meanwhile, if there is one."""
    if service is None:
        yield None
        return
    context = multiprocessing.get_context("spawn")
    port, other = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(other, *service))
    process.start()
    other.close()
    try:
        yield f"localhost:{port.recv()}"
    except EOFError:
        raise ValueError(
            "A SavedModel that TensorFlow can load is required. Received: "
            f"{service[0]}. See the message above, and export it again."
        ) from None
    finally:
        process.terminate()
        process.join()


def _answer(port, path, intra_op, inter_op):
    """Answers requests until the process is ended."""
    worker.set_up("tensorflow")
    import grpc
    import tensorflow as tf
    from tensorflow_serving.apis import (
        predict_pb2,
        prediction_service_pb2_grpc,
    )

    tf1 = tf.compat.v1
    config = tf1.ConfigProto(
        intra_op_parallelism_threads=intra_op,
        inter_op_parallelism_threads=inter_op,
    )
    session = tf1.Session(graph=tf.Graph(), config=config)
    loaded = tf1.saved_model.load(session, ["serve"], str(path))

    class Servicer(prediction_service_pb2_grpc.PredictionServiceServicer):
        def Predict(self, request, context):
            signature = loaded.signature_def[request.model_spec.signature_name]
            names = {k: v.name for k, v in signature.outputs.items()}
            feed = {
                signature.inputs[name].name: tf.make_ndarray(value)
                for name, value in request.inputs.items()
            }
            response = predict_pb2.PredictResponse()
            for name, value in session.run(names, feed).items():
                response.outputs[name].CopyFrom(tf.make_tensor_proto(value))
            return response

    server = grpc.server(concurrent.futures.ThreadPoolExecutor(64))
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(
        Servicer(), server
    )
    number = server.add_insecure_port("localhost:0")
    server.start()
    port.send(number)
    server.wait_for_termination()


def table(rows):
    """Returns the Markdown of what was measured."""
    lines = [
        "| server | signature | clients | pictures/s | median, ms | 99 %, ms |",
        "|---|---|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {row.service} | {row.signature} | {row.clients} | "
        f"{row.pictures_per_second:,.1f} | {row.percentile(50):,.1f} | "
        f"{row.percentile(99):,.1f} |"
        for row in rows
    ]
    return "\n".join(lines)
