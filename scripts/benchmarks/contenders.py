"""Who takes part in which comparison."""

from benchmarks.engines import (
    keras,
    litert,
    onnxruntime,
    openvino,
    tensorflow,
    torch,
)
from benchmarks.tasks import THREADS, Contender


def _ours(key, name, make, precision="float32", goal=None, **options):
    return Contender(key, name, make, precision, options, True, goal)


def _ours_exported(key, name, make, format, precision, against=None):
    return Contender(
        f"{key}_{precision}",
        name,
        make,
        precision,
        {"precision": precision},
        ours=True,
        artifact=(format, precision),
        against=against,
    )


def _keras(key, name, make, goal=None, **options):
    """Returns one of ours in float32, and in mixed precision."""
    return (
        _ours(key, name, make, **options),
        _ours(
            f"{key}_bfloat16",
            f"{name}, mixed",
            make,
            "bfloat16",
            goal,
            policy="mixed_bfloat16",
            **options,
        ),
    )


def _files(key, name, engine, ours, peers, **options):
    """Returns an engine on our file and on PyTorch's, in float32 and int8."""

    def on(file, precision, suffix, goal=None, against=None):
        format = ours if file == "our export" else peers
        given = {"format": format, "precision": precision}
        if precision == "float32":
            given |= options
        return Contender(
            key + suffix,
            f"{name}, {file}",
            engine.infer,
            precision,
            given,
            goal=goal,
            artifact=(format, precision),
            against=against,
        )

    return (
        on("our export", "float32", "", 1.0),
        on("PyTorch's export", "float32", "_torch", 1.0, key),
        on("our export", "int8", "_int8", against=key),
        on("PyTorch's export", "int8", "_torch_int8", 1.0, f"{key}_int8"),
    )


_FLOAT32 = {"INFERENCE_PRECISION_HINT": "f32"}

INFERENCE = (
    *_keras("predict", "Keras predict", keras.predict),
    *_keras(
        "predict_on_batch",
        "Keras predict_on_batch",
        keras.predict,
        at_once=True,
    ),
    *(
        Contender(
            f"folded_{precision}",
            "Keras, folded, predict_on_batch",
            keras.folded,
            precision,
            {"dtype": precision},
            ours=True,
            against=f"saved_model_{precision}",
        )
        for precision in ("float32", "bfloat16")
    ),
    *(
        _ours_exported(key, name, make, "saved_model", precision)
        for precision in ("float32", "bfloat16")
        for key, name, make in (
            ("saved_model", "SavedModel", tensorflow.saved_model),
            ("shares", "SavedModel, in shares", tensorflow.session_in_shares),
        )
    ),
    _ours_exported("litert", "LiteRT", litert.infer, "litert", "float32"),
    _ours_exported(
        "litert",
        "LiteRT",
        litert.infer,
        "litert",
        "int8",
        against="litert_float32",
    ),
    *_files("onnxruntime", "ONNX Runtime", onnxruntime, "onnx", "torch_onnx"),
    *_files(
        "openvino",
        "OpenVINO",
        openvino,
        "openvino",
        "torch_openvino",
        **_FLOAT32,
    ),
    Contender(
        "openvino_bfloat16",
        "OpenVINO, our export, by default",
        openvino.infer,
        "bfloat16",
        goal=1.0,
        artifact=("openvino", "float32"),
    ),
    Contender(
        "openvino_torch_bfloat16",
        "OpenVINO, PyTorch's export, by default",
        openvino.infer,
        "bfloat16",
        {"format": "torch_openvino"},
        goal=1.0,
        artifact=("torch_openvino", "float32"),
        against="openvino_bfloat16",
    ),
    Contender("torch", "PyTorch, channels_last", torch.infer, goal=1.3),
    Contender(
        "torch_contiguous",
        "PyTorch, contiguous",
        torch.infer,
        options={"channels_last": False},
        goal=1.3,
    ),
    Contender(
        "torch_compile",
        "PyTorch, channels_last, compiled",
        torch.infer,
        options={"compiled": True},
        goal=1.15,
    ),
    Contender(
        "torch_bfloat16",
        "PyTorch, channels_last, autocast",
        torch.infer,
        "bfloat16",
        {"bfloat16": True},
        goal=1.3,
    ),
    Contender(
        "stock",
        "Keras predict, stock layers",
        keras.predict,
        options={"stock": True},
    ),
)

TRAINING = (
    *_keras("fit", "Keras fit, arrays", keras.fit, 1.6),
    *_keras("fit_dataset", "Keras fit, dataset", keras.fit, 1.6, dataset=True),
    Contender("torch", "PyTorch, channels_last", torch.train, goal=1.05),
    Contender(
        "torch_contiguous",
        "PyTorch, contiguous",
        torch.train,
        options={"channels_last": False},
        goal=1.05,
    ),
    Contender(
        "torch_bfloat16",
        "PyTorch, channels_last, autocast",
        torch.train,
        "bfloat16",
        {"bfloat16": True},
    ),
)


def _keras_on(backend, make, policy):
    precision = "bfloat16" if policy == "mixed_bfloat16" else "float32"
    name = f"Keras {'fit' if make is keras.fit else 'predict'} on {backend}"
    return Contender(
        f"{backend}_{precision}",
        name,
        make,
        precision,
        {"policy": policy},
        ours=True,
        backend=backend,
    )


def gpu(train):
    """Returns who takes part where TensorFlow need not be installed."""
    ours, peer = (
        (keras.fit, torch.train) if train else (keras.predict, torch.infer)
    )
    return (
        *(
            _keras_on(backend, ours, policy)
            for backend in ("jax", "torch")
            for policy in ("float32", "mixed_bfloat16")
        ),
        *(
            Contender(
                f"pytorch{'_compile' * compiled}_{precision}",
                f"PyTorch, channels_last{', compiled' * compiled}",
                peer,
                precision,
                {"bfloat16": precision == "bfloat16", "compiled": compiled},
                goal=1.0,
                backend="torch",
            )
            for compiled in (False, True)
            for precision in ("float32", "bfloat16")
        ),
    )


def threads():
    """Returns a session for each pair of numbers of threads, 0 the default.

    And what else might keep one picture from waiting for threads.
    """

    def served(key, name, make=tensorflow.session, **options):
        file = ("saved_model", "float32")
        return Contender(
            key, name, make, options=options, ours=True, artifact=file
        )

    return (
        *(
            served(
                f"inter{inter_op}_intra{intra_op}",
                f"{inter_op or 'default'} | {intra_op or 'default'}",
                inter_op=inter_op,
                intra_op=intra_op,
            )
            for inter_op in (0, 1, 2)
            for intra_op in sorted({0, 1, THREADS})
        ),
        served(
            "own_thread",
            f"the caller's | {THREADS}",
            inter_op=1,
            intra_op=THREADS,
            own_thread=True,
        ),
        served(
            "xla_clusters",
            f"1, XLA where it can | {THREADS}",
            inter_op=1,
            intra_op=THREADS,
            clusters=True,
        ),
        served("xla", "all by XLA | default", tensorflow.compiled),
    )
