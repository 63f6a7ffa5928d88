"""What the quickstart exports, on a small scale, and the chart of accuracy."""

import keras
import numpy as np
import pytest
from PIL import Image

import keras_resnext
from keras_resnext.export import formats

if keras.backend.backend() != "tensorflow":
    pytest.skip("export is TensorFlow's", allow_module_level=True)
for package in ("matplotlib", "skimage", "sklearn"):
    pytest.importorskip(package, reason="pip install '.[examples]'")

import accuracy  # noqa: E402
import quickstart  # noqa: E402


@pytest.mark.slow  # a process; CI runs the quickstart itself, too
def test_quickstart_serves_digits(tmp_path, monkeypatch):
    monkeypatch.setattr(quickstart, "OUT", tmp_path)
    keras.utils.set_random_seed(0)
    base = keras_resnext.ResNeXt(
        (1, 1), 2, 4, include_top=False, stem="cifar", pooling="avg"
    )
    model = keras.Sequential([base, keras.layers.Dense(10, "softmax")])
    images = np.random.default_rng(0).normal(size=(3, 32, 32, 3)).astype("f4")
    (tmp_path / "digits" / "1").mkdir(parents=True)  # of an earlier run
    assert quickstart.serve(model, images, model.predict(images)) < 1e-5
    assert [path.name for path in tmp_path.iterdir()] == ["digits"]
    picture = formats.PICTURES[0].read_bytes()
    _, run = formats.load(tmp_path / "digits" / "1")
    answer = run({"pictures": [picture]}, "serving_bytes")
    transform = keras_resnext.eval_transform("resnext29/cifar10")
    scores = np.asarray(model(transform(picture)[np.newaxis]))[0]
    best = np.argsort(-scores)[:5]
    assert answer["labels"][0].tolist() == [str(i).encode() for i in best]


def test_accuracy_is_drawn(tmp_path, run_here):
    path = tmp_path / "new" / "accuracy.png"
    assert run_here(accuracy.main, path).stdout == f"{path}\n"
    with Image.open(path) as image:
        assert image.size == (1300, 600) and len(image.getcolors(1 << 24)) > 9
    (tmp_path / "file").write_text("")
    failed = run_here(accuracy.main, tmp_path / "file" / "accuracy.png")
    assert failed.returncode and "Traceback" not in failed.stderr
    assert f"Received: {tmp_path / 'file'} (" in failed.stderr
    failed = run_here(accuracy.main, tmp_path)
    assert failed.returncode == 2
    assert f"Received: {tmp_path}, a folder. Name a" in failed.stderr
