"""Writes SavedModels for TensorFlow Serving."""

import json

from keras_resnext.export.decoding import decode
from keras_resnext.export.folding import servable
from keras_resnext.pillow import MAX_ASPECT, MAX_PIXELS

_BROKEN = (
    "A JPEG, PNG, GIF or BMP picture that can be decoded, of at most {:,} "
    f"pixels and sides of at most 1 to {MAX_ASPECT}, is required."
)
PREPROCESSING = "preprocessing.json"
# TensorFlow's names of Pillow's filters.
_KERNELS = {"bilinear": "triangle", "bicubic": "keyscubic"}
# A request may have up to 1,024 pictures; eight at a time are computed, as more
# are not faster. The server takes as many threads as there are processors.
_BATCHING = """\
max_batch_size { value: 1024 }
enable_large_batch_splitting { value: true }
max_execution_batch_size { value: 8 }
batch_timeout_micros { value: 2000 }
max_enqueued_batches { value: 100 }
"""


def save(
    model,
    path,
    checkpoint=None,
    labels=None,
    top=5,
    max_pixels=MAX_PIXELS,
    facts=None,
):
    """Writes a model as one version of a servable.

    Signatures:
        `serving_default` takes `images` as the model does, or several inputs
        by their names, and returns `outputs`, float32.
        `serving_bytes`, only with a checkpoint, takes `pictures`, encoded
        JPEG, PNG, GIF or BMP, `(batch,)`. It returns `labels` and `scores`
        of the best classes, `(batch, top)`, best first, and `errors`,
        `(batch,)`: empty or, for a picture that is too large or cannot be
        decoded as Pillow does (see `keras_resnext.export.decoding`), a
        sentence; such a picture has empty labels and scores of 0, and the
        others in its batch keep theirs.

    Args:
        model: What `keras_resnext.export.folding.fold` returns.
        path: Folder to write, `pathlib.Path`; beside it the assets are left.
        checkpoint: `keras_resnext.registry.Checkpoint` whose preprocessing
            pictures get, or `None`.
        labels: Names of the classes, with a checkpoint only; they are also
            the asset `labels.txt`.
        top: Number of classes to return for a picture.
        max_pixels: Greatest number of pixels of a picture.
        facts: What else is to be known of the pictures: the asset
            `preprocessing.json`.
    """
    import tensorflow as tf

    module = tf.Module()
    run = servable(model)
    module.model_variables = run.get_concrete_function().variables
    module.tables = [
        part
        for part in tf.train.TrackableView(model).descendants()
        if isinstance(part, tf.lookup.StaticHashTable)  # a layer's vocabulary
    ]
    signatures = {"serving_default": run}
    if checkpoint is not None:
        file = path.with_name("labels.txt")
        file.write_text("".join(f"{label}\n" for label in labels), "utf-8")
        module.labels = tf.saved_model.Asset(str(file))
        signatures["serving_bytes"] = _classifier(
            run, checkpoint, labels, min(top, len(labels)), max_pixels
        )
    if facts:
        file = path.with_name(PREPROCESSING)
        write_facts(facts, file)
        module.preprocessing = tf.saved_model.Asset(str(file))
    tf.saved_model.save(module, str(path), signatures=signatures)


def versions(path):
    """Returns the versions in a servable's folder.

    Args:
        path: The folder, `pathlib.Path`, which may be missing.

    Returns:
        From each number to its folder. As for TensorFlow Serving, numbers
        are of ASCII digits; `int` and `str.isdigit` know others, too.
    """
    return {
        int(file.name): file
        for file in path.glob("*")
        if file.name.isascii() and file.name.isdecimal()
    }


def facts_of(path):
    """Returns the file of what an artifact says of its inputs.

    Args:
        path: Of the artifact, a file or a folder, `pathlib.Path`.

    Returns:
        Its path: in the folder, or beside the file and named after it.
    """
    if path.is_dir():
        return path / PREPROCESSING
    return path.with_name(f"{path.name}.json")


def write_facts(facts, path):
    """Writes what an artifact says of its inputs as JSON."""
    text = json.dumps(facts, indent=1, ensure_ascii=False)
    path.write_text(text + "\n", "utf-8")


def is_facts(path):
    """Tells whether `write_facts` may have written a file."""
    try:
        facts = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(facts, dict) and {"order", "resize", "mean"} <= {*facts}


def _classifier(run, checkpoint, labels, top, max_pixels):
    """Returns the signature from encoded pictures to the best classes."""
    import tensorflow as tf

    side = checkpoint.crop
    (inputs,) = run.input_signature

    def attempt(picture):
        # The graph's try statement: what fails to decode is skipped, and
        # the first of what remains is taken.
        decoded = tf.data.Dataset.from_tensors(picture).map(
            lambda data: (transform(data, checkpoint, max_pixels), True)
        )
        black = tf.data.Dataset.from_tensors((tf.zeros((side, side, 3)), False))
        return (
            decoded.ignore_errors()
            .concatenate(black)
            .take(1)
            .get_single_element()
        )

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
    def serving_bytes(pictures):
        images, good = tf.map_fn(
            attempt,
            pictures,
            fn_output_signature=(
                tf.TensorSpec((side, side, 3), tf.float32),
                tf.TensorSpec((), tf.bool),
            ),
        )
        if inputs.dtype.is_integer:
            images = tf.round(images)
        (scores,) = run(tf.cast(images, inputs.dtype)).values()
        scores, classes = tf.math.top_k(scores, top)
        names = tf.gather(tf.constant(labels), classes)
        good_rows = good[:, tf.newaxis]
        return {
            "labels": tf.where(good_rows, names, ""),
            "scores": tf.where(good_rows, scores, 0.0),
            "errors": tf.where(good, "", _BROKEN.format(max_pixels)),
        }

    return serving_bytes


def transform(data, checkpoint, max_pixels=MAX_PIXELS):
    """Applies a checkpoint's preprocessing to a picture with TensorFlow alone.

    What `keras_resnext.eval_transform` does with Pillow, for a graph that has
    to run without Python.

    Args:
        data: Encoded JPEG, PNG, GIF or BMP, a string tensor `()`.
        checkpoint: `keras_resnext.registry.Checkpoint`.
        max_pixels: Greatest number of pixels of a picture.

    Returns:
        float32, `(crop, crop, 3)`, normalised.

    Raises:
        tf.errors.InvalidArgumentError: If the picture cannot be decoded as
            Pillow does, or is too large.
    """
    import tensorflow as tf

    pixels = decode(data, max_pixels)
    crop, before = checkpoint.crop, tf.shape(pixels)[:2]
    size = checkpoint.resize * before // tf.reduce_min(before)
    # As `eval_transform`: padded with black where it is too small.
    start = tf.where(
        size < crop,
        -((crop - size) // 2),
        tf.cast(tf.round((size - crop) / 2), tf.int32),
    )
    kernel = _KERNELS[checkpoint.interpolation]
    # Width first, then height, and whole numbers after each, like Pillow.
    # Lying on its side, as the operation begins with the height: nothing
    # larger than the picture's bytes is made.
    for axis in (1, 0):
        pixels = tf.transpose(pixels, (1, 0, 2))
        pixels = tf.raw_ops.ScaleAndTranslate(
            images=pixels[tf.newaxis],
            size=tf.stack([crop, tf.shape(pixels)[1]]),
            scale=tf.stack(
                [tf.cast(size[axis] / before[axis], "float32"), 1.0]
            ),
            translation=tf.stack([-tf.cast(start[axis], "float32"), 0.0]),
            kernel_type=kernel,
            antialias=True,
        )[0]
        pixels = tf.floor(tf.clip_by_value(pixels, 0.0, 255.0) + 0.5)
    pixels = tf.ensure_shape(pixels, (crop, crop, 3))
    mean, std = (tf.constant(v) for v in (checkpoint.mean, checkpoint.std))
    return (pixels / 255.0 - mean) / std


def write_warmup(path, requests):
    """Writes the requests that TensorFlow Serving answers before any other.

    The first request of a signature is many times slower than the others.

    Args:
        path: Folder of the version.
        requests: From a signature to its inputs, values by their names.

    Returns:
        Whether it could: the package `tensorflow-serving-api` is needed.
    """
    import tensorflow as tf

    try:
        from tensorflow_serving.apis import predict_pb2, prediction_log_pb2
    except ImportError:
        return False
    folder = path / "assets.extra"
    folder.mkdir()
    file = str(folder / "tf_serving_warmup_requests")
    with tf.io.TFRecordWriter(file) as writer:
        for signature, inputs in requests.items():
            request = predict_pb2.PredictRequest()
            request.model_spec.signature_name = signature
            for name, value in inputs.items():
                request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
            log = prediction_log_pb2.PredictionLog()
            log.predict_log.request.CopyFrom(request)
            writer.write(log.SerializeToString())
    return True


def write_batching(path, scratch):
    """Writes a batching configuration into a servable's folder, if it has none.

    Up to eight waiting pictures make one batch, a processor for each batch;
    none waits longer than 2 ms for others. Larger requests are divided.

    Args:
        path: The servable's folder.
        scratch: Folder on the same disk, in which the file may be incomplete.
    """
    file = path / "batching_parameters.txt"
    if not file.exists():
        part = scratch / file.name
        part.write_text(_BATCHING, "utf-8")
        part.replace(file)
