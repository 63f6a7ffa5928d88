"""Networks of the Hugging Face hub, from a server here that answers like it."""

import dataclasses
import hashlib
import http.server
import io
import json
import pathlib
import re
import sys
import threading

import keras
import numpy as np
import pytest
import reference
import safetensors.numpy
from PIL import Image
from reference import TINY, draw

import keras_resnext
from keras_resnext.registry import (
    ARCHITECTURES,
    IMAGENET_MEAN,
    IMAGENET_STD,
)
from keras_resnext.weights import hub

pytest.importorskip("huggingface_hub", reason="pip install -e '.[hub]'")
NAME = "hf://somebody/fine-tuned"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
LABELS = ["ant", "bee", "cat", "dog", "eel", "fox", "gnu"]
CONFIG = {
    "architecture": "tinynext_2x1d",
    "num_classes": 7,
    "num_features": 256,
    "global_pool": "avg",
    "label_names": LABELS,
    "pretrained_cfg": {
        "tag": "ft",
        "input_size": [3, 32, 32],
        "test_input_size": [3, 48, 48],
        "crop_pct": 0.875,
        "test_crop_pct": 0.96,
        "interpolation": "bicubic",
        "crop_mode": "center",
        "mean": [0.5, 0.4, 0.3],
        "std": [0.25, 0.2, 0.5],
        "license": "apache-2.0",
        "first_conv": "conv1",
        "classifier": "fc",
    },
}


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves `server.files` of any repository, or refuses."""

    protocol_version = "HTTP/1.1"

    def respond(self, status, body=b"", **headers):
        body = self.server.change(body)
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[: self.server.drop_after])
            if self.server.drop_after is not None:
                self.close_connection = True
            self.server.sent += len(body)

    def do_GET(self):
        server = self.server
        server.asked.append(f"{self.command} {self.path}")
        if server.refusal:
            status, code = server.refusal
            return self.respond(status, b"{}", X_Error_Code=code)
        match = re.fullmatch(r"/(.+)/resolve/([^/]+)/(.+)", self.path)
        if not match or match[3] not in server.files:
            return self.respond(404, b"{}", X_Error_Code="EntryNotFound")
        body = server.files[match[3]]
        headers = {
            "ETag": f'"{hashlib.sha256(body).hexdigest()}"',
            "X_Repo_Commit": COMMIT,
            "Accept_Ranges": "bytes",
        }
        wanted = re.fullmatch(r"bytes=(\d+)-.*", self.headers["Range"] or "")
        if wanted and self.command == "GET" and int(wanted[1]) < len(body):
            return self.respond(206, body[int(wanted[1]) :], **headers)
        return self.respond(200, body, **headers)

    do_HEAD = do_GET

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def running():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.01}
    )
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def site(running, tmp_path, monkeypatch):
    """A hub with one fine-tuned network, and a cache that is empty."""
    url = f"http://127.0.0.1:{running.server_port}"
    monkeypatch.setenv("HF_ENDPOINT", url)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    fresh(monkeypatch)
    row = dataclasses.replace(TINY, name=CONFIG["architecture"])
    monkeypatch.setitem(ARCHITECTURES, row.name, row)
    monkeypatch.setattr(reference, "CLASSES", 7)
    running.files = {
        "config.json": json.dumps(CONFIG).encode(),
        "model.safetensors": safetensors.numpy.save(draw("tiny")),
    }
    running.asked, running.sent = [], 0
    running.refusal = running.drop_after = None
    running.change = lambda body: body
    return running


def fresh(monkeypatch):
    """Makes the client read its environment anew."""
    for name in list(sys.modules):
        if name.partition(".")[0] == "huggingface_hub":
            monkeypatch.delitem(sys.modules, name)


def configure(site, **changes):
    settings = CONFIG["pretrained_cfg"] | changes.pop("settings", {})
    config = CONFIG | {"pretrained_cfg": settings} | changes
    site.files["config.json"] = json.dumps(config).encode()


def tiny(weights, **options):
    return keras_resnext.ResNeXt(
        (1,), 2, 1, weights=weights, stem="cifar", classes=7, **options
    )


def kernel(model):
    return keras.ops.convert_to_numpy(model.get_layer("predictions").kernel)


def refused(kind, *patterns, call=lambda: keras_resnext.from_hub(NAME)):
    with pytest.raises(kind) as caught:
        call()
    for pattern in patterns:
        assert re.search(pattern, str(caught.value)), caught.value


def test_first_cached_and_offline(site, monkeypatch):
    model = keras_resnext.from_hub("somebody/fine-tuned")
    assert model.name == "tinynext_2x1d"
    assert model.input_shape == (None, 48, 48, 3)
    expected = draw("tiny")["fc.weight"].T
    np.testing.assert_array_equal(kernel(model), expected)
    # The same through the other doors, and nothing is sent again.
    sent = site.sent
    for other in (
        tiny(NAME),
        tiny(f"{NAME}@main"),
        keras_resnext.build("tinynext_2x1d", weights=NAME, classes=7),
    ):
        np.testing.assert_array_equal(kernel(other), expected)
    assert site.sent == sent
    assert not tiny(NAME, include_top=False).get_layer("conv1_bn").losses
    asked = len(site.asked)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    fresh(monkeypatch)
    np.testing.assert_array_equal(kernel(tiny(NAME)), expected)
    assert len(site.asked) == asked


def test_pytorch_model_bin(site):
    site.files["pytorch_model.bin"] = (
        reference.GOLDEN.parent / "fixtures" / "net_zip.pth"
    ).read_bytes()
    del site.files["model.safetensors"]
    configure(site, num_classes=16, label_names=None)
    assert keras_resnext.from_hub(NAME).output_shape == (None, 16)
    del site.files["pytorch_model.bin"]
    refused(
        ValueError,
        "must have one of model.safetensors, pytorch_model.bin",
        call=lambda: keras_resnext.from_hub("somebody/else"),
    )


def test_transform_and_names(site):
    configure(site, settings={"crop_mode": "squash"})
    transform = keras_resnext.eval_transform(NAME)
    row = transform.checkpoint
    assert (row.resize, row.crop, row.classes) == (50, 48, 7)
    image = np.zeros((40, 80, 3), "uint8")
    image[:, :20] = 255
    pixels = transform(image)
    assert pixels.shape == (48, 48, 3)
    np.testing.assert_allclose(pixels[24, 0], [2, 3, 1.4], rtol=1e-6)
    np.testing.assert_allclose(pixels[24, 40], [-2, -2, -0.6], rtol=1e-6)
    assert row.labels == tuple(LABELS)
    scores = np.eye(7)[[2]]
    for labels in (row.labels, NAME):
        ((best,),) = keras_resnext.decode_predictions(scores, 1, labels)
        assert best == ("cat", "cat", 1)


def test_names_by_id(site):
    """Not by their order in the file, where "10" may come before "2"."""
    by_id = {str(i): name for i, name in reversed([*enumerate(LABELS)])}
    configure(site, label_names=by_id)
    row = keras_resnext.eval_transform(NAME).checkpoint
    assert row.labels == tuple(LABELS)


def test_names_of_other_languages(site):
    """Words of Persian may have a joiner, names of Chinese a wide space."""
    labels = [*LABELS[:5], "one\u200cword", "two\u3000words"]
    configure(site, label_names=labels)
    assert hub.describe(NAME).labels == tuple(labels)


def test_names_of_imagenet_21k(site):
    count = 21_841
    names = {str(i): f"n{i:08}" for i in range(count)}
    texts = dict.fromkeys(names.values(), "tench, Tinca tinca: " + 99 * "x")
    configure(
        site, num_classes=count, label_names=names, label_descriptions=texts
    )
    assert hub.describe(NAME).labels == tuple(names.values())


@pytest.mark.parametrize(
    "content", [b'{"a":[' + b'{"":0},' * 500_000 + b"1]}", b" " * 2**23]
)
def test_a_long_configuration(site, content):
    site.files["config.json"] = content
    refused(ValueError, "its JSON is longer than any network's")


def test_on_the_command_line(site, monkeypatch, capsys):
    from keras_resnext.__main__ import main
    from keras_resnext.export.formats import PICTURES

    row = dataclasses.replace(ARCHITECTURES["tinynext_2x1d"], constructor=None)
    monkeypatch.setitem(ARCHITECTURES, row.name, row)  # as `register` adds it
    picture = str(PICTURES[0])
    words = ["predict", picture, "--top", "1", "--network"]
    found = []
    for network in (["tinynext_2x1d", "--weights", NAME], [NAME]):
        assert main([*words, *network]) == 0
        lines = capsys.readouterr().out.splitlines()
        found += [line for line in lines if picture in line]
    assert found[0] == found[1]
    assert found[0].removeprefix(picture).split()[0] in LABELS
    site.refusal = 401, "RepoNotFound"
    for network, message in (
        (["tinynext_2x1d", "--weights", "hf://a/b"], "Could not download conf"),
        (["hf://a/b"], "Could not download config.json"),
        (["hf://a"], "must be `hf://USER/NAME`"),
        ([NAME, "--classes", "7"], "must be named alone: it has its own"),
    ):
        with pytest.raises(SystemExit) as end:
            main([*words, *network])
        assert end.value.code == 2
        assert message in capsys.readouterr().err


def test_ten_classes_without_names_are_not_those_of_cifar(site):
    from keras_resnext.commands import predicting
    from keras_resnext.export import preparing

    configure(site, num_classes=10, label_names=None)
    with pytest.raises(ValueError, match=r"must name its classes.*10 classes"):
        keras_resnext.decode_predictions(np.eye(10), labels=NAME)
    model = keras_resnext.ResNeXt((1,), 2, 1, stem="cifar", classes=10)
    with pytest.raises(ValueError, match="must name the model's 10 classes"):
        preparing._classes(model, NAME, None)
    row = keras_resnext.eval_transform(NAME).checkpoint
    assert predicting._names(None, row, 10)[9] == "class 9"
    configure(site, num_classes=1000, label_names=None)
    ((best,),) = keras_resnext.decode_predictions(
        np.eye(1000)[:1], 1, "hf://somebody/else"
    )
    assert best[1] == "tench"


def test_border():
    row = dataclasses.replace(
        keras_resnext.eval_transform("resnet18").checkpoint,
        resize=24,
        crop=32,
        crop_mode="border",
    )
    buffer = io.BytesIO()
    Image.new("RGB", (48, 24), (255, 0, 0)).save(buffer, "png")
    pixels = keras_resnext.eval_transform(row)(buffer.getvalue())
    # 24x12 pixels in the middle; the rest is about the mean, which is zero.
    assert (np.abs(pixels).max(-1) > 0.1).sum() == 24 * 12
    assert np.abs(pixels[9]).max() < 0.02
    assert pixels[10, 4, 0] > 2


def test_cut_in_the_middle(site):
    tiny(None)
    keras_resnext.eval_transform(NAME)
    site.drop_after = 1000
    refused(ConnectionError, "^Could not download model.safetensors", NAME)
    site.drop_after = None
    model = keras_resnext.from_hub(NAME)
    np.testing.assert_array_equal(kernel(model), draw("tiny")["fc.weight"].T)


def test_damaged_in_the_cache(site, monkeypatch):
    expected = draw("tiny")["fc.weight"].T
    tiny(NAME)
    file = hub.fetch("somebody/fine-tuned")
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    np.testing.assert_array_equal(kernel(tiny(NAME)), expected)
    assert file.read_bytes() != data
    file.write_bytes(data)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    fresh(monkeypatch)
    refused(ConnectionError, "^Could not download model.safetensors", NAME)


def test_damaged_in_a_cache_that_is_read_only(site, monkeypatch):
    tiny(NAME)
    file = hub.fetch("somebody/fine-tuned")
    file.write_bytes(file.read_bytes()[:-1] + b"\1")

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(pathlib.Path, "unlink", refuse)
    blob = re.escape(str(file.resolve()))
    refused(OSError, f"'{blob}', which is damaged and", "set HF_HUB_CACHE")


def test_another_file_than_the_hub_names(site):
    keras_resnext.eval_transform(NAME)
    site.change = lambda body: body[:-1] + b"\1"
    refused(
        ValueError,
        "^Could not download model.safetensors: SHA-256 [0-9a-f]{64}, as the",
        "deleted",
    )
    site.change = lambda body: body
    model = keras_resnext.from_hub(NAME)
    np.testing.assert_array_equal(kernel(model), draw("tiny")["fc.weight"].T)


@pytest.mark.parametrize(
    "refusal, advice",
    [
        ((401, "RepoNotFound"), "hf auth login"),
        ((404, "RepoNotFound"), "Check the name"),
        ((403, "GatedRepo"), "Ask for access on https://huggingface.co/some"),
        ((404, "RevisionNotFound"), "Check the name and the revision"),
        ((404, "EntryNotFound"), "Choose one that has it"),
    ],
)
def test_refusals(site, refusal, advice):
    site.refusal = refusal
    refused(
        ConnectionError,
        "^Could not download config.json",
        rf"Received: {NAME} \(\d+\)\. ",
        advice,
    )


def test_without_a_network(site, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    fresh(monkeypatch)
    refused(
        ConnectionError,
        "^Could not download config.json",
        "`hf download somebody/fine-tuned config.json model.safetensors`",
    )
    refused(
        ConnectionError,
        "model.safetensors --revision v1.0`",
        call=lambda: keras_resnext.from_hub(f"{NAME}@v1.0"),
    )
    assert not site.asked


def test_without_the_client(site, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    refused(ImportError, r'pip install "keras_resnext\[hub\]"')


@pytest.mark.parametrize(
    "content, pattern",
    [
        (b"<html>", "A checkpoint must be"),
        (safetensors.numpy.save({"a": np.zeros(3, "float32")}), "of another"),
    ],
)
def test_wrong_file(site, content, pattern):
    site.files["model.safetensors"] = content
    refused(ValueError, pattern)


@pytest.mark.parametrize(
    "changes, pattern",
    [
        (
            {"architecture": "resnet18"},
            "must be of resnet18 with 7 classes, .*of tinynext_2x1d with 7",
        ),
        (
            {"num_classes": 8, "label_names": None},
            "with 8 classes, .* with 7 classes",
        ),
    ],
)
def test_of_another_network_than_it_says(site, changes, pattern):
    configure(site, **changes)
    refused(ValueError, pattern)


@pytest.mark.parametrize(
    "changes, pattern",
    [
        ({"architecture": "vit_base_patch16_224"}, "which is vit_base_patch16"),
        ({"architecture": "resnet18"}, r"which is resnet18.*from_hub\("),
        ({"settings": {"license": "cc-by-nc-4.0"}}, "accept_noncommercial=Tr"),
    ],
)
def test_refused_before_the_weights(site, changes, pattern):
    configure(site, **changes)
    refused(
        ValueError,
        pattern,
        call=lambda: keras_resnext.build(
            "tinynext_2x1d", weights=NAME, classes=7
        ),
    )
    assert not any("model.safetensors" in line for line in site.asked)


def test_classes_are_those_of_the_config(site):
    refused(
        ValueError,
        r"`classes` must be 7, .*classes=5\..*replace_top\(model, 5\)",
        call=lambda: keras_resnext.build(
            "tinynext_2x1d", weights=NAME, classes=5
        ),
    )


def test_consent(site):
    configure(site, settings={"license": "cc-by-nc-sa-4.0"})
    refused(ValueError, "accept_noncommercial=True")
    keras_resnext.from_hub(NAME, accept_noncommercial=True)


@pytest.mark.parametrize(
    "changes",
    [
        {"settings": "none"},
        {"settings": {"input_size": 7, "test_input_size": None}},
        {"settings": {"crop_pct": 10**400, "test_crop_pct": None}},
        {"settings": {"test_input_size": [3, 48, 40]}},
        {"settings": {"test_input_size": [1, 48, 48]}},
        {"settings": {"test_input_size": [3, 10**9, 10**9]}},
        {"settings": {"test_crop_pct": -1}},
        {"settings": {"interpolation": "lanczos"}},
        {"settings": {"crop_mode": "fit"}},
        {"settings": {"std": [0, 1, 1]}},
        {"settings": {"mean": [float("nan"), 1, 1]}},
        {"settings": {"mean": [1, 1]}},
        {"label_names": LABELS[:3]},
        {"label_names": "abcdefg"},
        {"label_names": dict(enumerate(LABELS, 1))},
        {"label_names": {f"id{i}": name for i, name in enumerate(LABELS)}},
        {"label_names": [*LABELS[:6], "two\nlines"]},
        {"num_classes": -1},
        {"num_classes": 10**9, "label_names": None},
        {"settings": {"license": "mit\x1b[31m"}},
        {"architecture": "resnext" * 99},
        {"global_pool": "max"},
        {"model_args": {"act_layer": "silu"}},
        {"model_args": {"num_classes": 8}},
        {"model_args": ["silu"]},
    ],
)
def test_settings_that_are_not_ours(site, changes):
    if changes.get("settings") == "none":
        changes = {"pretrained_cfg": "none"}
    configure(site, **changes)
    refused(ValueError, "The config.json of a network on the hub must be")


@pytest.mark.parametrize("content", [b"{}", b"[]", b"{", b"\xff"])
def test_files_that_are_no_configuration(site, content):
    site.files["config.json"] = content
    refused(ValueError, "The config.json of a network on the hub must be")


def test_what_timm_leaves_out_is_its_default(site):
    config = {"architecture": CONFIG["architecture"], "num_classes": 7}
    site.files["config.json"] = json.dumps(config).encode()
    row = keras_resnext.eval_transform(NAME).checkpoint
    assert (row.resize, row.crop, row.interpolation) == (256, 224, "bicubic")
    assert (row.mean, row.std) == (IMAGENET_MEAN, IMAGENET_STD)
    assert (row.labels, row.licence) == (None, "unknown")


def test_what_timm_always_writes(site):
    # timm 1.0.31's `save_for_hf`, of a network with `drop_rate=0.1`.
    arguments = {"num_classes": 7, "in_chans": 3, "global_pool": "avg"}
    arguments |= {"drop_rate": 0.1, "act_layer": None}
    configure(site, model_args=arguments)
    model = keras_resnext.from_hub(NAME)
    np.testing.assert_array_equal(kernel(model), draw("tiny")["fc.weight"].T)


@pytest.mark.parametrize(
    "name", ["hf://", "hf://one", "hf://a/b/c", "hf://a/@"]
)
def test_names(name):
    refused(ValueError, "must be `hf://USER/NAME`", call=lambda: tiny(name))


@pytest.mark.parametrize("found", ["tinynext9_2x1d", "resnext14_2x1d"])
def test_of_the_family_without_a_row(site, found):
    configure(site, architecture=found)
    if found.startswith("resnext"):
        model = keras_resnext.from_hub(NAME)
        assert model.name == found
        assert model.get_layer("conv2_block1_2_conv").groups == 2
    else:
        refused(ValueError, "plain, SE, D, T or AA kind")


@pytest.mark.parametrize(
    "found, anti_aliased, pattern",
    [
        ("resnetblur50", False, "AA kind.*architecture='resnetblur50'"),
        ("legacy_seresnet50", False, "AA kind"),
        ("resnetaa50", False, "must be True for weights of resnetaa50"),
        ("resnet50", True, "must be False for weights of resnet50"),
        ("seresnextaa101d_32x8d", False, "must be True for weights of sere"),
    ],
)
def test_what_no_array_shows(site, found, anti_aliased, pattern):
    configure(site, architecture=found)
    refused(
        ValueError,
        pattern,
        call=lambda: tiny(NAME, anti_aliased=anti_aliased),
    )
    assert not any("model.safetensors" in line for line in site.asked)


def test_old_names(site, monkeypatch):
    configure(site, architecture="gluon_tinynext_2x1d")
    assert hub.describe(NAME).architecture == "tinynext_2x1d"


def test_networks_of_imagenet_12k(tmp_path, monkeypatch):
    """Their classes have no names; without a top nobody has to count them."""
    large = ARCHITECTURES["seresnextaa101d_32x8d"]
    row = dataclasses.replace(
        large, name="tiny12k", depths=(1,), groups=2, width_per_group=4
    )
    monkeypatch.setitem(ARCHITECTURES, row.name, row)
    path = tmp_path / "tiny12k.safetensors"
    model = keras_resnext.build(row.name, weights=None, classes=11_821)
    keras_resnext.weights.save(model, path)
    checkpoint = dataclasses.replace(
        keras_resnext.registry.CHECKPOINTS[large.name, "sw_in12k"],
        architecture=row.name,
        file=str(path),
        hub=None,
    )
    rows = keras_resnext.registry.CHECKPOINTS
    monkeypatch.setitem(rows, (row.name, "sw_in12k"), checkpoint)
    options = {"weights": "sw_in12k"}
    loaded = keras_resnext.build(row.name, classes=11_821, **options)
    assert loaded.output_shape == (None, 11_821)
    for one, other in zip(loaded.weights, model.weights, strict=True):
        # The file has half precision.
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-6)
    bare = keras_resnext.build(row.name, include_top=False, **options)
    assert bare.count_params() < loaded.count_params() - 11_821
    with pytest.raises(ValueError, match="`classes` must be 11821"):
        keras_resnext.build(row.name, classes=1000, **options)
