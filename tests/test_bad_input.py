"""Bad input to every script: one sentence, and never a traceback."""

import csv
import errno
import importlib.metadata
import json
import os
import pathlib
import signal
import subprocess
import sys
import types

import keras
import numpy as np
import pytest
from PIL import Image

import evaluate
import quickstart
import serving_client
import train
from common import data, files
from keras_resnext.commands import console
from training import distribute, job, phases, recipes, resume

NUMBERS = ("0", "-1", "1.5", "nan", "many", "1" + 30 * "0")
SHARES = ("-0.1", "1.1", "nan", "inf", "half")
TRAIN = ("--data", "none.npz", "--out", "run")
# Each option of a script that takes a number, and what it must refuse.
TABLE = [
    *(
        (train, TRAIN, f"--{name}", NUMBERS)
        for name in (
            *("epochs", "batch-size", "accumulate", "sizes", "test-size"),
            *("test-resize", "save-every", "groups", "width-per-group"),
        )
    ),
    (train, TRAIN, "--unfreeze-epochs", ("-1", "x")),
    (train, TRAIN, "--learning-rate", ("0", "-1", "nan", "inf")),
    *(
        (train, TRAIN, f"--{name}", ("-1", "nan", "inf"))
        for name in ("mixup", "weight-decay", "magnitude")
    ),
    *(
        (train, TRAIN, f"--{name}", SHARES)
        for name in (
            *("erasing", "ema", "dropout", "stochastic-depth", "warm-up"),
            *("label-smoothing", "milestones", "holdout", "cutmix"),
        )
    ),
    (train, TRAIN, "--seed", ("-1", "x", str(2**32))),
    *(
        (evaluate, ("net.keras", "--data", "none"), f"--{name}", NUMBERS)
        for name in ("batch-size", "resize", "crop", "classes")
    ),
    (serving_client, ("--model", "m", "cat.jpg"), "--batch-size", NUMBERS),
    (serving_client, ("--model", "m", "x"), "--timeout", ("0", "-1", "nan")),
]


def call(module, *arguments):
    """Runs a script in this process; returns its status and its sentence."""
    sys.argv = [module.__name__, *map(str, arguments)]
    with pytest.raises(SystemExit) as caught:
        module.main()
    return caught.value.code


@pytest.fixture(autouse=True)
def _argv(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.chdir(tmp_path)


def test_numbers_that_are_none(capsys):
    for module, arguments, option, values in TABLE:
        for value in values:
            case = f"{module.__name__} {option}={value}"
            assert call(module, *arguments, f"{option}={value}") == 2, case
            (line,) = capsys.readouterr().err.splitlines()
            assert f"argument {option}: must be" in line, case
            assert f"Received: {value[:20]!r}"[:-1] in line, case


def test_unknown_architecture(capsys):
    assert call(train, *TRAIN, "--model", "vgg") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "argument --model: `architecture` must be a known one." in line
    assert "Received: architecture='vgg'. Pass one of resnext50_32x4d" in line


@pytest.mark.parametrize(
    "name", ["SE-ResNeXt-50", "seresnext50", "SEResNeXt50"]
)
def test_names_of_architectures_forgive(name):
    assert console.architecture(name) == "seresnext50_32x4d"
    # The data is what is wrong.
    assert "--data must be" in call(train, *TRAIN, "--model", name)


def test_numbers_at_their_bounds():
    share = console.Number(float, 0, 1, open="most")
    assert (share("0"), console.SHARE("1"), console.COUNT("0")) == (0, 1, 0)
    assert str(share) == "a number from 0 to below 1"
    with pytest.raises(Exception, match="from 0 to below 1"):
        share("1")


@pytest.fixture
def arrays():
    images = np.zeros((4, 8, 8, 3), "u1")
    labels = np.array([0, 1, 0, 1])
    arrays = {"x_train": images, "y_train": labels}
    return arrays | {"x_test": images, "y_test": labels}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y_test": np.array([0, 1, 0, 10**9])}, "at most 100,000 classes"),
        ({"y_test": np.full(4, 2**64 - 1, "u8")}, "at most 100,000 classes"),
        ({"x_train": np.zeros((4, 8, 0, 3), "u1")}, "x_train must be uint8"),
        ({"x_train": np.zeros((4, 0, 8, 3), "u1")}, "x_train must be uint8"),
        ({"x_train": np.uint8(3)}, "x_train must be uint8"),
        ({"y_train": np.array("a")}, "y_train must hold an integer"),
        ({"y_train": np.array([{}] * 4)}, "an .npz file that can be read"),
    ],
)
def test_archives_of_other_things(arrays, change, message):
    np.savez("data.npz", **arrays | change)
    code = call(train, "--data", "data.npz", "--out", "run", *PLAIN)
    assert message in code and "\n" not in code
    assert not os.path.exists("run")


def test_an_archive_without_pictures(arrays):
    np.savez("data.npz", **{name: a[:0] for name, a in arrays.items()})
    code = call(train, "--data", "data.npz", "--out", "run", *PLAIN)
    assert "at least two classes. Received: no pictures. Add a class" in code
    line = ("resnext29", "--weights", "cifar10", "--data", "data.npz")
    assert "Received: 0 pictures. Add some" in call(evaluate, *line)


# Settings that other tests in this process do not notice.
PLAIN = ("--dtype", "float32", "--no-deterministic", "--batch-size", 4)


def test_damaged_archives(arrays):
    np.savez("data.npz", **arrays)
    with open("data.npz", "rb") as file:
        whole = file.read()
    random = np.random.default_rng(0)
    refused = 0
    for _ in range(60):
        damaged = bytearray(whole)
        for place in random.integers(len(whole), size=3):
            damaged[place] ^= 1 << random.integers(8)
        with open("data.npz", "wb") as file:
            file.write(damaged[: random.integers(len(whole) // 2, 2**20)])
        try:
            data.load("data.npz")
        except ValueError as error:
            assert str(error).count("Received: ") == 1
            refused += 1
    assert refused > 40


@pytest.mark.parametrize("out", ["file", "file/below"])
def test_no_folder_to_write_to(arrays, out):
    np.savez("data.npz", **arrays)
    with open("file", "w"):
        pass
    code = call(train, "--data", "data.npz", "--out", out, *PLAIN)
    assert code.startswith("--out must be a folder that can be written")
    assert code.count("\n") == 0


def test_a_read_only_folder(monkeypatch, tmp_path):
    # Whoever runs the tests may write everywhere, as root does.
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    code = call(train, "--data", "none", "--out", tmp_path / "run")
    assert "must not be written to" in code


@pytest.mark.parametrize("out", [".", "run", "rose/run", "../pictures/run"])
def test_what_is_written_is_no_class(tmp_path, monkeypatch, out):
    for name in ("rose", "tulip"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "pictures")
    for script, *network in ([train], [evaluate, "resnext29"]):
        code = call(script, *network, "--data", ".", "--out", out)
        assert code == (
            "--out must not be where the class folders are, and be taken for "
            f"one. Received: {pathlib.Path(out)} in .. Choose another one."
        )
    (tmp_path / "pictures").rename(tmp_path / "train")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "val").mkdir()
    data.require_apart(".", pathlib.Path("run"))
    with pytest.raises(ValueError, match=r"Received: val in val\. Choose"):
        data.require_apart(".", pathlib.Path("val"))


@pytest.mark.parametrize(
    "content",
    [b"", b"no archive", {}, {"about": "{}"}, {"about": json.dumps([1])}],
)
def test_a_damaged_state(arrays, content):
    np.savez("data.npz", **arrays)
    os.mkdir("run")
    if isinstance(content, bytes):
        with open("run/state.npz", "wb") as file:
            file.write(content)
    else:
        np.savez("run/state.npz", **content)
    code = call(train, "--data", "data.npz", "--out", "run", *PLAIN)
    assert code.startswith("A training goes on from its own state.")
    assert "\n" not in code


def test_the_state_of_another_network(tmp_path):
    run = resume.Run(tmp_path, {})
    run.arrays = [np.zeros(3)]
    with pytest.raises(ValueError, match="that of another network"):
        run.restore([np.zeros(4)])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "int32"])
def test_a_state_has_all_kinds_of_numbers(tmp_path, dtype):
    values = np.arange(-3, 4)
    variable = keras.Variable(values, dtype=dtype, trainable=False)
    run = resume.Run(tmp_path, {})
    run.capture([variable])
    run.write()
    variable.assign(keras.ops.zeros(7, dtype))
    resume.Run(tmp_path, {}).restore([variable])
    found = keras.ops.convert_to_numpy(keras.ops.cast(variable, "float32"))
    np.testing.assert_array_equal(found, values)


def test_options_that_are_newer_than_the_run(tmp_path):
    run = resume.Run(tmp_path, {"seed": 0})
    run.arrays = [np.zeros(3)]
    run.write()
    options = {"seed": 0, "planes": None, "repeats": 1, "milestones": []}
    assert resume.Run(tmp_path, options).arrays is not None
    with pytest.raises(
        ValueError, match=r"Received: repeats was 1 and is 3 in"
    ):
        resume.Run(tmp_path, options | {"repeats": 3})
    with pytest.raises(ValueError, match="planes was None and is 16 in"):
        resume.Run(tmp_path, options | {"planes": 16})


def test_a_training_goes_on_with_its_own_pictures(arrays, tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, **arrays)
    train_split, test_split = data.load(path)
    run = resume.Run(
        tmp_path, {resume.PICTURES: data.digest(train_split, test_split)}
    )
    run.arrays = [np.zeros(3)]
    run.write()
    arrays["y_train"] = arrays["y_train"][::-1]
    np.savez(path, **arrays)
    changed = data.digest(*data.load(path))
    with pytest.raises(
        ValueError, match="Received: other pictures or classes in --data in"
    ):
        resume.Run(tmp_path, {resume.PICTURES: changed})


def test_where_the_pictures_lie_does_not_count(tmp_path):
    for first, second in (
        (
            {"data": "a/", resume.PICTURES: "1"},
            {"data": "b", resume.PICTURES: "1"},
        ),
        ({"data": "a/"}, {"data": "a/", resume.PICTURES: "1"}),  # an older run
    ):
        run = resume.Run(tmp_path, first)
        run.arrays = [np.zeros(3)]
        run.write()
        assert resume.Run(tmp_path, second).arrays is not None
        run.path.unlink()
    run.write()
    with pytest.raises(ValueError, match="data was 'a/' and is 'b'"):
        resume.Run(tmp_path, {"data": "b", resume.PICTURES: "1"})


def test_which_pictures_are_the_same(tmp_path):
    for name in ("a", "b"):
        for i in range(2):
            path = tmp_path / "old" / name / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8 + i, 8)).save(path)

    def digest(folder):
        return data.digest(*data.load(tmp_path / folder))

    first = digest("old")
    encoded = data.Split([b"one", b"two"], np.zeros(2, "int64"), ["a"])
    other = data.Split([b"one", b"2"], np.zeros(2, "int64"), ["a"])
    assert data.digest(encoded) != data.digest(other)
    (tmp_path / "old").rename(tmp_path / "new")
    assert digest("new") == first  # wherever they are
    (tmp_path / "new" / "b").rename(tmp_path / "new" / "c")
    assert digest("new") != first
    (tmp_path / "new" / "c").rename(tmp_path / "new" / "b")
    Image.new("RGB", (99, 80)).save(tmp_path / "new" / "a" / "1.png")
    assert digest("new") != first


@pytest.mark.parametrize("many", [False, True])
def test_a_picture_may_be_replaced_by_one_of_its_size(
    tmp_path, monkeypatch, many
):
    """As in BMP, where all pictures of a shape have one size."""
    path = tmp_path / "a.bmp"
    split = data.Split([str(path)], np.zeros(1, "int64"), ["a"])
    if many:  # which takes too long to read
        monkeypatch.setattr(data, "_MANY", 1)
    found = set()
    for colour in ("red", "blue"):
        Image.new("RGB", (8, 8), colour).save(path)
        found.add(data.digest(split))
    assert len(found) == (1 if many else 2)


def test_weights_may_be_replaced_by_others_of_their_name(tmp_path):
    """The features of frozen layers are those of the weights before."""
    path, recipe = tmp_path / "a.pth", recipes.RECIPES["finetune"]
    split = data.Split([b"one"], np.zeros(1, "int64"), ["a"])
    args = types.SimpleNamespace(
        model="resnext29", weights=str(path), accept_noncommercial=False
    )
    path.write_bytes(b"one")
    run = resume.Run(tmp_path, job.describe(args, recipe, split, split))
    run.arrays = [np.zeros(3)]
    run.write()
    again = resume.Run(tmp_path, job.describe(args, recipe, split, split))
    assert again.arrays is not None
    path.write_bytes(b"two")
    with pytest.raises(ValueError, match="Received: another file of --weight"):
        resume.Run(tmp_path, job.describe(args, recipe, split, split))


def test_a_run_that_has_compared_names_and_sizes_goes_on(tmp_path):
    run = resume.Run(tmp_path, {"data": "a", "pictures_and_classes": "1"})
    run.arrays = [np.zeros(3)]
    run.write()
    now = {"data": "a", resume.PICTURES: "2", resume.WEIGHTS: "3"}
    assert resume.Run(tmp_path, now).arrays is not None


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--accumulate", 1000), "--accumulate 1000 with 4 steps in all"),
        (("--repeats", 9), "--repeats 9 with --batch-size 2"),
        (("--ema", 0.9999659), "4 steps in a phase, after which 100% of it"),
        (("--ema", 0.4), "Pass --ema 0.3162, or less, or 0 for none."),
    ],
)
def test_a_training_without_an_update(arrays, tmp_path, words, sentence):
    arrays |= {
        n: np.concatenate([arrays[n]] * 2) for n in ("x_train", "y_train")
    }
    np.savez(tmp_path / "a.npz", **arrays)
    line = ["--data", tmp_path / "a.npz", "--out", tmp_path / "out"]
    line += ["--batch-size", 2, "--epochs", 1, "--sizes", 8]
    assert sentence in call(train, *line, *words)
    assert not (tmp_path / "out" / "state.npz").exists()


def test_an_empty_path_is_no_folder(capsys):
    assert "Received: ''" in call(train, "--data", "", "--out", "o")
    assert call(train, "--data", "x", "--out", "") == 2
    assert "--out: must be a path. Received: ''" in capsys.readouterr().err


ONCE = (*PLAIN, "--sizes", 8, "--epochs", 3, "--recipe", "finetune")
ONCE += ("--weights", "cifar10")  # which `small_training` leaves alone


@pytest.fixture
def small(arrays, small_training):
    """Prepares a training that takes a second."""
    for package in ("tensorboard", "matplotlib"):
        pytest.importorskip(package)
    np.savez("data.npz", **arrays)
    return ("--data", "data.npz", "--out", "run", *ONCE)


@pytest.mark.parametrize("name", ["state", "model", "log", "features"])
def test_a_full_disk_while_training(small, monkeypatch, name):
    replacing = files.replacing

    def full(path):
        if name in str(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return replacing(path)

    monkeypatch.setattr(files, "replacing", full)
    code = call(train, *small)
    assert code.startswith("--out must be a folder that can be written")
    assert "No space left on device" in code
    assert not [name for name in os.listdir("run") if ".part" in name]


def test_a_picture_that_is_gone_is_no_fault_of_out(small, monkeypatch):
    def vanish(phase, strategy):
        raise FileNotFoundError(
            errno.ENOENT, os.strerror(errno.ENOENT), "a.png"
        )

    monkeypatch.setattr(phases, "evaluate", vanish)
    code = call(train, *small)
    assert code.startswith("Files must be there, with the rights to use them")
    assert "Received: a.png (No such file or directory)." in code


@pytest.mark.parametrize(
    ("error", "claimed"),
    [
        (PermissionError(errno.EACCES, "Denied", "run/below/a"), True),
        (PermissionError(errno.EACCES, "Denied", "a", None, "run/b"), True),
        (PermissionError(errno.EACCES, "Denied", "running/a"), False),
        (OSError(errno.ENOSPC, "Full"), True),  # of an open file
        (OSError(errno.EIO, "Broken"), False),
        (OSError("A sentence."), False),
    ],
)
def test_which_errors_are_those_of_out(error, claimed):
    with pytest.raises(OSError) as caught, files.writing(pathlib.Path("run")):
        raise error
    assert ("--out must be a folder" in str(caught.value)) == claimed
    assert (caught.value is error) != claimed


@pytest.fixture
def other_training():
    """Another process, which holds the lock of the folder `run`."""
    os.mkdir("run")
    code = "import pathlib, sys; from common import files\n"
    code += "with files.locked(pathlib.Path('run')):\n"
    code += "    print('has it', flush=True)\n    sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "has it\n"
        yield process
        process.kill()


def test_two_trainings_in_a_folder(small, other_training):
    code = call(train, *small)
    assert code == (
        "A folder must have one training at a time. Received: run, into "
        "which another one writes. Wait for its end, or pass another --out."
    )
    assert os.listdir("run") == ["training.lock"]
    other_training.kill()  # who was killed has it no more
    other_training.wait()
    sys.argv = ["train", *map(str, small)]
    train.main()
    assert "result.json" in os.listdir("run")
    assert "training.lock" not in os.listdir("run")


def test_a_lock_ends_with_what_it_is_for(other_training):
    other_training.communicate()
    assert other_training.returncode == 0 and not os.listdir("run")
    with pytest.raises(KeyError), files.locked(pathlib.Path("run")):
        raise KeyError
    assert not os.listdir("run")


@pytest.mark.filterwarnings("ignore:Implicitly cleaning up")
def test_workers_that_write_elsewhere_need_no_lock(
    small, other_training, monkeypatch
):
    class Second(distribute.Single):
        worker, workers = 1, 2

    monkeypatch.setattr(distribute, "choose", lambda *_: Second())
    sys.argv = ["train", *map(str, small)]
    train.main()
    assert os.listdir("run") == ["training.lock"]


@pytest.mark.parametrize("step", [0, 1])
def test_ctrl_c_ends_the_step_and_keeps_the_state(
    small, monkeypatch, capsys, step
):
    """The last step of an epoch as any other: no test follows."""
    end = resume.Saver.on_train_batch_end

    def press(saver, batch, logs=None):
        if (saver.run.epoch, batch) == (1, step):
            os.kill(os.getpid(), signal.SIGINT)
        end(saver, batch, logs)

    monkeypatch.setattr(resume.Saver, "on_train_batch_end", press)
    before = signal.getsignal(signal.SIGINT)
    more = ("--freeze", "backbone", "--batch-size", 2)  # two steps an epoch
    assert call(train, *small, *more) == 130
    assert signal.getsignal(signal.SIGINT) is before
    assert capsys.readouterr().err.splitlines()[-1] == "Interrupted."
    with np.load("run/state.npz") as file:
        about = json.loads(str(file["about"]))
    assert (about["epoch"], about["step"]) == (1, step + 1)
    # Started again, it ends as if it had not been stopped.
    monkeypatch.setattr(resume.Saver, "on_train_batch_end", end)
    for out in ("run", "whole"):
        sys.argv = ["train", *map(str, (*small, *more, "--out", out))]
        train.main()
    weights, rows = zip(
        *(
            (_bytes(f"{out}/weights.safetensors"), _losses(f"{out}/log.csv"))
            for out in ("run", "whole")
        ),
        strict=True,
    )
    assert weights[0] == weights[1] and rows[0] == rows[1]
    assert len(rows[0]) == 3


def _bytes(path):
    with open(path, "rb") as file:
        return file.read()


def _losses(path):
    with open(path, newline="") as file:
        return [row["loss"] for row in csv.DictReader(file)]


def test_features_are_computed_once_in_all_runs(small, monkeypatch):
    computed = []
    predict = keras.Model.predict
    monkeypatch.setattr(
        keras.Model,
        "predict",
        lambda *args, **_: computed.append(1) or predict(*args),
    )
    write = resume.Run.write

    def die(run, **now):
        write(run, **now)
        raise KeyboardInterrupt

    monkeypatch.setattr(resume.Run, "write", die)
    assert call(train, *small) == 130
    assert len(computed) == 2 and os.path.exists("run/features.npz")
    monkeypatch.setattr(resume.Run, "write", write)
    sys.argv = ["train", *map(str, small)]
    train.main()
    assert len(computed) == 2
    assert not os.path.exists("run/features.npz")  # needed no more
    sys.argv = ["train", *map(str, small)]  # which has ended: nothing to do
    train.main()
    assert len(computed) == 2
    modes = {os.stat(f"run/{n}").st_mode & 0o777 for n in os.listdir("run")}
    umask = os.umask(0)
    os.umask(umask)
    assert modes == {0o666 & ~umask, 0o777 & ~umask}  # files, a folder


@pytest.mark.parametrize("content", [b"", b"none", "text", "h5"])
def test_damaged_and_foreign_networks(arrays, content):
    np.savez("data.npz", **arrays)
    if content == "text":
        keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]).save(
            "net.keras"
        )
    elif content == "h5":
        np.savez("net.keras.npz", **{"config.json": np.zeros(3)})
        os.rename("net.keras.npz", "net.keras")
    else:
        with open("net.keras", "wb") as file:
            file.write(content)
    line = ("net.keras", "--checkpoint", "resnext29/cifar10")
    code = call(evaluate, *line, "--data", "data.npz")
    assert " is required. Received: " in code
    assert "\n" not in code


def test_a_network_for_other_pictures(arrays):
    np.savez("data.npz", **arrays)
    inputs = keras.Input((16, 16, 3))
    outputs = keras.layers.Dense(2)(keras.layers.Flatten()(inputs))
    keras.Model(inputs, outputs).save("net.keras")
    line = ("net.keras", "--checkpoint", "resnext29/cifar10")
    code = call(evaluate, *line, "--data", "data.npz")
    assert "32 pixels for 16x16. Pass --crop 16" in code


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ([], "another answer"),
        ({"predictions": [{}]}, "another answer"),
        ({"predictions": []}, "0 answers for 1 pictures"),
    ],
)
def test_servers_of_other_models(monkeypatch, answer, message):
    with open("cat.jpg", "wb") as file:
        file.write(b"picture")
    response = types.SimpleNamespace(ok=True, json=lambda: answer)
    monkeypatch.setattr(
        serving_client.requests.Session, "post", lambda *a, **k: response
    )
    assert message in call(serving_client, "--model", "m", "cat.jpg")


@pytest.mark.parametrize(
    "url", ["http://localhost:1", "localhost:1", "http://", "x://y", "http://:"]
)
def test_servers_that_are_none(url):
    with open("cat.jpg", "wb") as file:
        file.write(b"picture")
    line = ("--model", "m", "--rest", url, "--timeout", 1, "cat.jpg")
    code = call(serving_client, *line)
    assert code.startswith("A server that answers is required. Received: ")


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (KeyboardInterrupt(), 130, "Interrupted."),
        (ValueError("Bad. Received: x."), 1, "Bad. Received: x."),
        (MemoryError(), 1, "Memory is required"),
        # As JAX and PyTorch say it.
        (
            type("JaxRuntimeError", (RuntimeError,), {})(
                "RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.\nTable"
            ),
            *(1, "Out of memory allocating 9 bytes. Ask for smaller pictures"),
        ),
        (
            type("OutOfMemoryError", (RuntimeError,), {})("CUDA: no memory"),
            *(1, "Received: CUDA: no memory. Ask for smaller pictures or batc"),
        ),
        (OSError(errno.EACCES, "Denied", "/x"), 1, "Received: /x (Denied)"),
        (ImportError("none"), 1, "none"),
    ],
)
def test_how_commands_end(error, status, text, capsys):
    for wanted in (1, 2):
        with pytest.raises(SystemExit) as caught, console.plain_errors(wanted):
            raise error
        code = caught.value.code
        if isinstance(code, int):
            assert code == (status if status == 130 else wanted)
            code = capsys.readouterr().err
        assert text in code
    with pytest.raises(KeyError), console.plain_errors():
        raise KeyError  # a fault of the program keeps its traceback


def test_no_memory_on_tensorflows_device():
    tf = pytest.importorskip("tensorflow")
    error = tf.errors.ResourceExhaustedError(None, None, "OOM when allocating")
    assert "--accumulate" in console.sentence(error)
    assert console.sentence(RuntimeError("a fault of the program")) is None


def test_a_pipe_that_closes():
    code = (
        "__keras_later__ = True\n"  # so never
        "from keras_resnext.commands import console\n"
        "with console.plain_errors():\n"
        "    while True: print('line', flush=True)"
    )
    result = subprocess.run(
        f'set -o pipefail; {sys.executable} -c "{code}" | head -1',
        shell=True,
        executable="bash",
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.stdout == "line\n" and "Traceback" not in result.stderr
    assert result.returncode == 141


@pytest.mark.parametrize("name", ["train", "evaluate", "serving_client"])
def test_each_option_has_a_text_and_its_default(name, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    assert call(sys.modules[name], "--help") == 0
    text = capsys.readouterr().out.partition("options:")[2]
    options = text.split("\n  -")[2:]
    assert len(options) > 4
    for option in options:
        words = option.split(None, 2)
        assert len(words) > 2, option
        required = words[0] in ("-data", "-out", "-model") or (
            "commercial" in words[0]
        )
        assert required or "default: " in option, option


def test_a_backend_of_another_package(
    arrays, small_training, monkeypatch, run_here
):
    """As `tensorflow-cpu`, which is imported as `tensorflow`."""

    def version(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    np.savez("data.npz", **arrays)
    words = ("--data", "data.npz", "--epochs", 1, "--sizes", 8, "--out", "run")
    assert not run_here(train.main, *words, *PLAIN).stderr
    words = ("run/model.keras", "--data", "data.npz", "--out", "measured")
    assert not run_here(evaluate.main, *words).stderr
    for name in ("run/result", "measured/evaluation"):
        with open(f"{name}.json") as file:
            versions = json.load(file)["versions"]
        assert versions["keras"] == keras.__version__
        assert set(versions) == {"keras", keras.backend.backend(), "numpy"}


def test_recipes_without_their_texts(monkeypatch, capsys):
    """As with `python -OO`."""
    monkeypatch.setattr(recipes.Recipe, "__doc__", None)
    assert call(train, "--help") == 0
    assert "--epochs" in capsys.readouterr().out


def test_packages_that_are_missing(monkeypatch):
    monkeypatch.setattr(
        console.importlib.util,
        "find_spec",
        lambda name: None if name in ("tensorflow", "matplotlib") else name,
    )
    for names, text in (
        (("matplotlib",), "The package matplotlib is required. Received: no m"),
        (("numpy", "matplotlib"), "The packages numpy, matplotlib are requi"),
    ):
        with pytest.raises(ImportError, match=text):
            console.require_packages("train", *names)
    # At once, as the export comes last.
    monkeypatch.setattr(quickstart, "classify", None)
    code = call(quickstart)
    assert code.startswith("The package tensorflow is required. Received: no ")
    assert code.endswith('Run `pip install ".[tensorflow]"` in a checkout.')
