"""Networks of equal size: what is trained, and what is said of it."""

import concurrent.futures
import csv
import json
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("matplotlib", reason="pip install '.[train]'")
pytest.importorskip("tensorboard", reason="pip install '.[train]'")

import cardinality
import train

SMALL = ("--networks", "1x64", "4x24")


@pytest.fixture
def trained(tmp_path):
    """A folder in which four trainings have come to their end."""
    for name, parameters, errors in (
        ("1x64d", 5000, (0.1, 0.12)),
        ("4x24d", 4900, (0.08, 0.09)),
    ):
        for seed, error in enumerate(errors):
            folder = tmp_path / "out" / f"{name}_{seed}"
            folder.mkdir(parents=True)
            result = {
                "test_accuracy": 1 - error,
                "parameters": parameters,
                "minutes": 1.25,
            }
            if seed:  # train.py did not say so before
                result["finished"] = True
            (folder / "result.json").write_text(json.dumps(result))
    return tmp_path / "out"


def test_what_is_finished_is_summarised(trained, run_here):
    words = ("--out", trained, "--seeds", 2, *SMALL, "--epochs", 3)
    ended = run_here(cardinality.main, *words)
    assert ended.returncode == 0, ended.stderr
    text = (trained / "cardinality.md").read_text()
    assert text in ended.stdout
    # By hand: means 11 and 8.5, deviations 2^0.5 and 0.5^0.5.
    assert "| 1 x 64d | 5,000 | 10.00, 12.00 | 11.00 | 1.41 | 2.5 |" in text
    assert "| 4 x 24d | 4,900 | 8.00, 9.00 | 8.50 | 0.71 | 2.5 |" in text
    assert (
        "4 x 24d has 2.50 points less error than 1 x 64d; the standard error "
        "of that difference is 1.12." in text
    )
    with open(trained / "cardinality.csv") as file:
        rows = list(csv.DictReader(file))
    assert [(r["cardinality"], r["seed"], r["error"]) for r in rows] == [
        *(("1", "0", "10.0"), ("1", "1", "12.0")),
        *(("4", "0", "8.0"), ("4", "1", "9.0")),
    ]
    with Image.open(trained / "cardinality.png") as picture:
        assert len(picture.convert("RGB").getcolors(1 << 20)) > 20
    assert not list(trained.glob("*.part*"))

    ended = run_here(cardinality.main, *words[:-1], 4)
    assert ended.returncode == 1
    assert "they were --epochs 3. Pass these, or another --out" in ended.stderr


@pytest.mark.parametrize("name", ["4x24d_1/result.json", "options.json"])
@pytest.mark.parametrize("damaged", ["", "[", "{}", "3", "[" * 100_000])
def test_what_is_damaged_is_named(trained, run_here, name, damaged):
    (trained / name).write_text(damaged)
    words = ("--out", trained, "--seeds", 2, *SMALL)
    ended = run_here(cardinality.main, *words)
    assert ended.returncode == 1
    assert f"Received: {trained / name}, which is damaged." in ended.stderr
    assert (trained / name).read_text() == damaged


def test_one_seed_has_no_deviation(trained, run_here):
    networks = ("4x24", "1x64", "4x24")  # one of them twice
    words = ("--out", trained, "--seeds", 1, "--networks", *networks)
    ended = run_here(cardinality.main, *words)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("| 8.00 | 8.00 |  | 1.2 |") == 1
    assert "1 x 64d has 2.00 points more error than 4 x 24d, by one" in (
        ended.stdout
    )


@pytest.mark.parametrize(
    "words, sentence",
    [
        (("--networks", "4"), "number of groups and their width, as 32x4"),
        (("--networks", "0x4"), "number of groups and their width, as 32x4"),
        (("--seeds", "0"), "must be an integer from 1"),
        (("--seed=3",), "Received: --seed=3. Leave it out."),
        (("--groups", "3"), "Received: --groups. Leave it out."),
        (("--weights", "cifar10"), "Received: --weights. Leave it out."),
    ],
)
def test_wrong_options(words, sentence, tmp_path, run_here):
    ended = run_here(cardinality.main, "--out", tmp_path / "out", *words)
    assert ended.returncode == 2
    assert sentence in ended.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("words", [("--see", "5"), ("--gro=7",)])
def test_what_is_abbreviated_is_no_option_of_train(words, monkeypatch, capsys):
    line = ["train.py", "--data", "none", "--out", "run", *words]
    monkeypatch.setattr("sys.argv", line)
    with pytest.raises(SystemExit, match="2"):
        train.parse_arguments()
    assert f"unrecognized arguments: {' '.join(words)}" in (
        capsys.readouterr().err
    )


@pytest.mark.slow  # processes
def test_trains_and_goes_on(tmp_path):
    random = np.random.default_rng(0)
    pictures = random.integers(0, 256, (40, 8, 8, 3), dtype="uint8")
    labels = np.arange(40) % 2
    names = ("x_train", "y_train", "x_test", "y_test")
    data = tmp_path / "data.npz"
    np.savez(data, **dict(zip(names, 2 * (pictures, labels), strict=True)))
    out = tmp_path / "out"
    words = [sys.executable, cardinality.__file__, "--out", out, "--seeds", 1]
    words += ["--planes", 4, "--sizes", 8, "--batch-size", 20, "--epochs", 1]

    def run(data, *networks):
        line = [*words, "--data", data, "--networks", *networks]
        return subprocess.run(
            list(map(str, line)), capture_output=True, text=True
        )

    ended = run(tmp_path / "none.npz", "4x24")
    assert ended.returncode == 1
    assert "none.npz" in ended.stderr and "Traceback" not in ended.stderr

    # As if stopped in the second network.
    ended = run(data, "4x24")
    assert ended.returncode == 0, ended.stderr
    results = [out / f"{name}d_0" / "result.json" for name in SMALL[1:]]
    assert not results[0].exists()
    kept = results[1].stat()
    ended = run(data, *SMALL[1:])
    assert ended.returncode == 0, ended.stderr
    assert "2 of 2: 4 x 24d, seed 0" in ended.stdout
    assert results[1].stat() == kept
    for path, groups in zip(results, (1, 4), strict=True):
        options = json.loads(path.read_text())["options"]
        assert (options["groups"], options["planes"]) == (groups, 4)
        assert (options["epochs"], options["seed"]) == (1, 0)


def test_what_stops_it_stops_its_training():
    """A signal is passed on, and the status says which."""
    script = "import os, signal, time\n"
    script += "os.kill(os.getppid(), signal.SIGTERM)\ntime.sleep(60)"
    with cardinality.Processes() as processes:
        assert not processes.run([sys.executable, "-c", script])
        assert processes.status == 128 + 15
        assert not processes.run(["no", "such", "command"])  # nor is it tried
    # A terminal sends it to both: here the child ends by itself.
    script = "import os, signal, sys\n"
    script += "os.kill(os.getppid(), signal.SIGINT)\nsys.exit(130)"
    with cardinality.Processes() as processes:
        assert not processes.run([sys.executable, "-c", script])
    assert processes.status == 130
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("ended", [0, 1])
def test_a_signal_between_two_trainings(
    number, ended, tmp_path, monkeypatch, run_here
):
    """It is in the status, with or without a result to show."""
    calls = []

    def train(processes, *_):
        calls.append(1)
        if not ended:
            os.kill(os.getpid(), number)
            while not processes.stopped:
                time.sleep(0.01)
            return None
        return {"test_accuracy": 0.5, "parameters": 9, "minutes": 1}

    def write(*_):
        signal.raise_signal(number)

    monkeypatch.setattr(cardinality, "train", train)
    monkeypatch.setattr(cardinality, "write", write)
    result = run_here(cardinality.main, "--out", tmp_path / "out")
    assert result.returncode == 128 + number
    assert "| cardinality" not in result.stdout
    # What is done at once may be done before the signal is heard.
    assert ended or len(calls) < 18


def test_one_that_fails_stops_the_others():
    sleep = "import time; print(1); time.sleep(60)"
    scripts = (sleep, sleep, "import time, sys; time.sleep(1); sys.exit(3)")
    with (
        cardinality.Processes() as processes,
        concurrent.futures.ThreadPoolExecutor(3) as pool,
    ):
        lines = [[sys.executable, "-c", script] for script in scripts]
        assert list(pool.map(processes.run, lines)) == [False] * 3
    assert processes.status == 3


def test_what_cannot_be_written_ends_the_trainings(tmp_path, monkeypatch):
    came_to_its_end, both = [], threading.Barrier(2, timeout=60)

    def train(processes, folder, groups, *_):
        both.wait()
        if groups == 1:
            return {}
        sleep = "import time; time.sleep(30)"
        came_to_its_end.append(processes.run([sys.executable, "-c", sleep]))

    monkeypatch.setattr(cardinality, "train", train)
    words = ("--out", str(tmp_path), "--at-once", "2", *SMALL, "--seeds", "1")
    monkeypatch.setattr("sys.argv", ["cardinality.py", *words])
    with pytest.raises(OSError, match="disk is full"):
        for _ in cardinality.train_all(*cardinality.parse_arguments()):
            raise OSError("the disk is full")
    assert came_to_its_end == [False]


def test_trainings_side_by_side(tmp_path, monkeypatch, capsys):
    """Their results come in order, whichever ends first."""
    here = threading.Barrier(3, timeout=60)

    def train(_, folder, groups, width, seed, options):
        if seed == 0:
            here.wait()  # all three are there
        return {
            "test_accuracy": 1 - groups / 100 - seed / 1000,
            "parameters": width,
            "minutes": 1,
        }

    monkeypatch.setattr(cardinality, "train", train)
    monkeypatch.setattr(cardinality.os, "environ", {})
    words = ["--networks", "1x64", "2x40", "4x24", "--seeds", "2"]
    words += ["--out", str(tmp_path / "out"), "--at-once", "3"]
    monkeypatch.setattr("sys.argv", ["cardinality.py", *words])
    cardinality.main()
    assert "| 2 x 40d | 40 | 2.00, 2.10 | 2.05 |" in capsys.readouterr().out
    assert cardinality.os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] == "false"
