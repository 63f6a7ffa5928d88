r"""Classifies pictures with a model in TensorFlow Serving.

    python scripts/serving_client.py --model resnext50 pictures/
    python scripts/serving_client.py --model resnext50 --grpc localhost:8500 \
        cat.jpg dog.png

Asks the signature `serving_bytes` of what `keras_resnext.export.export` wrote:
the files go as they are, and the server decodes, resizes and classifies them.
Prints a line for each picture: its name and its best classes, or why it could
not be read or decoded; the exit status is 1 if there was such a picture.
"""

import argparse
import base64
import math
import re
import sys
import urllib.parse

__keras_later__ = True  # never here

from keras_resnext.commands import console  # first: for Ctrl-C

# isort: split
import requests
from tqdm import tqdm

from keras_resnext import pillow

SIGNATURE = "serving_bytes"


def parse_arguments():
    """Returns the command line's options."""
    parser = console.Parser(description=__doc__)
    parser.add_argument(
        "pictures", nargs="+", type=console.path, help="files or folders"
    )
    parser.add_argument(
        "--model", type=_name, required=True, help="its name on the server"
    )
    server = parser.add_mutually_exclusive_group()
    server.add_argument(
        "--rest", default="http://localhost:8501", help="URL of the server"
    )
    server.add_argument(
        "--grpc", help="its host and port, as localhost:8500 (default: REST)"
    )
    # A batch of full-size photographs stays far below gRPC's limit.
    parser.add_argument(
        "--batch-size",
        type=console.POSITIVE,
        default=8,
        help="pictures in a request",
    )
    parser.add_argument(
        "--timeout",
        type=console.SECONDS,
        default=60.0,
        help="seconds to wait for an answer",
    )
    return parser.parse_args()


def _name(text):
    if not text:  # as of a shell's variable that is not set
        raise argparse.ArgumentTypeError("the name must not be empty")
    return text


def rest(url, model, timeout):
    """Returns a function from encoded pictures to answers, over REST."""
    if not re.match("https?://", url):
        sys.exit(
            "A server that answers is required. Received: "
            f"--rest={url}. Begin it with http:// or https://."
        )
    url = url.rstrip("/")
    session, model = requests.Session(), urllib.parse.quote(model, safe="")

    def ask(pictures):
        encoded = [base64.b64encode(p).decode("ascii") for p in pictures]
        try:
            response = session.post(
                f"{url}/v1/models/{model}:predict",
                json={
                    "signature_name": SIGNATURE,
                    "instances": [{"b64": text} for text in encoded],
                },
                timeout=timeout,
            )
            if not response.ok:
                raise _refusal(
                    f"--rest={url}",
                    f"{response.status_code}: {response.text}",
                    len(pictures),
                )
            answers = response.json()["predictions"]
            return [(a["labels"], a["scores"], a["errors"]) for a in answers]
        except requests.RequestException as error:
            # Of all that is around it, what the system says.
            reason = re.search(r"\[Errno -?\d+\] ([^'\")]+)", str(error))
            reason = reason[1] if reason else f"{type(error).__name__}: {error}"
            raise OSError(
                "A server that answers is required. Received: "
                f"--rest={url} ({reason}). Start it, or check the address and "
                "--timeout."
            ) from error
        except (KeyError, TypeError) as error:
            raise _another_answer(url, repr(error)) from error

    return ask


def grpc(target, model, timeout):
    """Returns a function from encoded pictures to answers, over gRPC."""
    try:
        import grpc
        import tensorflow as tf
        from tensorflow_serving.apis import predict_pb2
        from tensorflow_serving.apis import (
            prediction_service_pb2_grpc as service,
        )
    except ImportError as error:
        sys.exit(
            "--grpc needs the packages grpcio and tensorflow-serving-api. "
            f"Received: --grpc={target} ({error}). Run `pip install "
            '".[export]"` in a checkout, or ask with --rest.'
        )
    stub = service.PredictionServiceStub(grpc.insecure_channel(target))

    def ask(pictures):
        request = predict_pb2.PredictRequest()
        request.model_spec.name = model
        request.model_spec.signature_name = SIGNATURE
        request.inputs["pictures"].CopyFrom(tf.make_tensor_proto(pictures))
        try:
            outputs = stub.Predict(request, timeout).outputs
        except grpc.RpcError as error:
            raise _refusal(
                f"--grpc={target}",
                f"{error.code().name}: {error.details()}",
                len(pictures),
            ) from error
        names = ("labels", "scores", "errors")
        if not outputs.keys() >= set(names):
            raise _another_answer(target, f"with {', '.join(outputs)}")
        try:
            labels, scores, errors = (
                tf.make_ndarray(outputs[name]) for name in names
            )
            texts = [[label.decode() for label in row] for row in labels]
            errors = [error.decode() for error in errors]
            return list(zip(texts, scores, errors, strict=True))
        except (AttributeError, TypeError, ValueError) as error:
            raise _another_answer(target, error) from error

    return ask


def _refusal(server, reason, count):
    """Returns the error for an answer that is none.

    Args:
        server: The option that names the server.
        reason: Its status and its words.
        count: Number of pictures that were sent.
    """
    reason = reason[:300]  # it may be a whole page
    if re.search("larger than maximum input batch size", reason):
        return ValueError(
            "A batch must not be larger than what the server takes. Received: "
            f"--batch-size for {count} pictures at once from {server} "
            f"({reason}). Pass a smaller --batch-size, or start the server "
            "with the batching_parameters.txt beside the model."
        )
    return OSError(
        "A server that answers is required. Received: "
        f"{server} ({reason}). Start it, or check the address, --model and "
        "--timeout."
    )


def _another_answer(server, fault):
    return ValueError(
        f"A model with the signature {SIGNATURE} is required. Received: "
        f"another answer from {server} ({fault}). Check --model and the "
        "address."
    )


def files(paths):
    """Returns the files, and those in the folders, in order."""
    found = []
    for path in paths:
        if not path.exists():
            sys.exit(
                "Pictures must be files or folders. Received: "
                f"{path}, which does not exist. Check the path."
            )
        inside = pillow.files_in(path)
        if path.is_dir() and not inside:
            sys.exit(
                "A folder must hold pictures. Received: "
                f"{path}, which has no files. Check the path."
            )
        found += inside or [path]
    return found


def read(paths):
    """Returns those of the files that can be read, and what is in them."""
    found = {}
    for path in paths:
        try:
            found[path] = path.read_bytes()
        except OSError as error:
            tqdm.write(f"{path}: {error.strerror}.")
    return found


def describe(answer, server):
    """Returns the best classes of a picture, or why it has none.

    Args:
        answer: Labels, scores and the error of a picture.
        server: Which gave it.

    Raises:
        ValueError: If these are no such things.
    """
    labels, scores, error = answer
    try:
        pairs = list(zip(labels, map(float, scores), strict=True))
        if not all(math.isfinite(score) for _, score in pairs):
            raise ValueError("scores that are no numbers")
    except (TypeError, ValueError) as fault:
        raise _another_answer(server, fault) from fault
    return error or ", ".join(f"{label} {score:.1%}" for label, score in pairs)


@console.plain_errors()
def main():
    """Classifies the pictures, a batch at a time."""
    arguments = parse_arguments()
    connect, server = rest, arguments.rest
    if arguments.grpc is not None:
        connect, server = grpc, arguments.grpc
    ask = connect(server, arguments.model, arguments.timeout)
    paths = files(arguments.pictures)
    broken = 0
    with tqdm(total=len(paths), unit="picture", disable=None) as progress:
        for start in range(0, len(paths), arguments.batch_size):
            batch = paths[start : start + arguments.batch_size]
            pictures = read(batch)
            broken += len(batch) - len(pictures)
            answers = ask(list(pictures.values())) if pictures else []
            if len(answers) != len(pictures):
                raise ValueError(
                    "A server that answers for each picture is required. "
                    f"Received: {len(answers)} answers for {len(pictures)} "
                    f"pictures from {server}. Check --model."
                )
            for path, answer in zip(pictures, answers, strict=True):
                tqdm.write(f"{path}: {describe(answer, server)}")
                broken += bool(answer[-1])
            progress.update(len(batch))
    sys.exit(1 if broken else 0)


if __name__ == "__main__":
    main()
