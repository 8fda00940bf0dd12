import os
import subprocess
import sys

import pytest

import condconv
from condconv.cli import models
from condconv.cli.main import main
from condconv.errors import MissingExtraError, TrainingError, TrainingInterrupted, require_extra
from tests.lab.samples import make_folder

NETWORK = "mobilenet_v1_025"


def train_arguments(root, out, *more):
    fixed = ["--model", NETWORK, "--image-size", "8", "--batch-size", "4", "--epochs", "1", "--device", "cpu"]
    return ["train", "--data", str(root), "-o", str(out), *fixed, *more]


def fails(capsys, argv, status=2):
    """Runs a command that has to fail; returns its one line on stderr."""
    assert main(argv) == status
    captured = capsys.readouterr()
    assert captured.err.startswith("condconv: ")
    assert captured.err.count("\n") == 1
    return captured.err


@pytest.mark.parametrize("command", [[], ["demo"], ["train"], ["evaluate"], ["models"]])
def test_help_describes_each_command(capsys, command):
    with pytest.raises(SystemExit) as caught:
        main([*command, "--help"])
    assert caught.value.code == 0
    said = capsys.readouterr().out
    assert " ".join(["usage: condconv", *command]) in said
    assert "(default: None)" not in said
    assert "==SUPPRESS==" not in said


def test_version(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"condconv {condconv.__version__}\n"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "error: `COMMAND` must be given, got nothing: see condconv --help"),
        (["fly"], "error: `COMMAND` must be one of demo, train, evaluate, models, bench, experiment, report, "),
        (["train"], "error: `--data, --model` must be given, got nothing: see condconv train --help"),
        (
            ["train", "--data", "digits", "--model", NETWORK, "--epochs", "two"],
            "`--epochs` must be a whole number from 1 to 1,000,000, got 'two': give one",
        ),
        (
            ["train", "--data", "digits", "--model", NETWORK, "--epochs", "0"],
            "`--epochs` must be a whole number from 1",
        ),
        (["train", "--data", "digits", "--model", NETWORK, "--model-option", "x"], "must be NAME=VALUE, got 'x'"),
        (["train", "--data", "digits", "--model", NETWORK, "--model-option", "x={1, 2}"], "or short lists of these"),
        (
            ["train", "--data", "digits", "--model", NETWORK, "--model-option", "x={[1]: 2}"],
            "can be built with, got x=",
        ),
        (
            ["train", "--data", "digits", "--model", NETWORK, "--model-option", "aa_layer=foo"],
            "can be built with, got aa_layer=",
        ),
        (["train", "--data", "no/such", "--model", NETWORK], "got no/such, which does not exist"),
        (["evaluate", "no.safetensors"], "`checkpoint` must be a file, got no.safetensors"),
        (
            ["models", "transformer"],
            "`pattern` must match names of networks, got 'transformer' for none: near names are",
        ),
        (["demo", "--seeds", "0"], "`--seeds` must be a whole number from 1 to 1,000, got 0"),
        (["demo", "--first-seed", "-1"], "`--first-seed` must be a whole number from 0 to 1,000,000, got -1"),
        (["demo", "--epochs", "0"], "`--epochs` must be a whole number from 1 to 1,000,000, got 0"),
    ],
)
def test_wrong_arguments_get_one_line_and_status_2(capsys, argv, message):
    assert message in fails(capsys, argv)


def test_a_name_nearly_right_gets_a_hint(tmp_path, capsys):
    argv = ["train", "--data", "digits", "--model", "mobilenet_v1_25", "-o", str(tmp_path)]
    assert "such as mobilenet_v1_" in fails(capsys, argv)


def test_an_unreadable_image_is_fatal_or_counted_as_asked(tmp_path, capsys):
    root = make_folder(tmp_path / "data")
    bad = root / "train" / "dog" / "0.png"
    bad.write_bytes(b"no image")
    assert f"error: `data` must hold readable images, got {bad}" in fails(capsys, train_arguments(root, tmp_path / "a"))
    assert main(train_arguments(root, tmp_path / "b", "--on-bad-image", "skip")) == 0
    assert "unreadable images left out: 1 over all epochs" in capsys.readouterr().out


def test_files_of_a_finished_run_that_are_gone_or_damaged_are_named(tmp_path, capsys):
    root, out = make_folder(tmp_path / "data"), tmp_path / "run"
    assert main(train_arguments(root, out)) == 0
    best, table = (out / name for name in ("best.safetensors", "metrics.csv"))
    weights, text = best.read_bytes(), table.read_bytes()
    changed = weights[:-9] + bytes([weights[-9] ^ 1]) + weights[-8:]
    for names, contents in (
        ("metrics.csv", (weights, None)),
        ("best.safetensors and metrics.csv", (None, None)),
        ("best.safetensors and metrics.csv", (b"", b"")),
        ("best.safetensors", (weights[:-100], text)),
        ("best.safetensors", (changed, text)),
        ("metrics.csv", (weights, text.partition(b"\n")[0])),
        ("metrics.csv", (weights, bytes(len(text)))),
        ("metrics.csv", (weights, b"\xff" + text)),
    ):
        for path, content in zip((best, table), contents, strict=True):
            path.unlink(missing_ok=True) if content is None else path.write_bytes(content)
        capsys.readouterr()
        said = fails(capsys, train_arguments(root, out))
        assert f"must hold all files of its finished run as it wrote them, got {out} with {names} missing or" in said
    table.write_bytes(text)
    assert main(train_arguments(root, out)) == 0


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("you tried: Cannot allocate memory"), RuntimeError("x")])
def test_too_little_memory_for_a_row_of_bench_is_one_sentence(capsys, monkeypatch, error):
    def measure(*arguments):
        raise error

    monkeypatch.setattr("condconv.lab.bench.run.measure_task", measure)
    argv = ["bench", "--networks", "mobilenet_v1_cc_050_8e", "--batch", "4096", "--repetitions", "1"]
    if str(error) == "x":
        with pytest.raises(RuntimeError, match="^x$"):
            main(argv)
    else:
        assert "failed: too little memory for this row: free some, or give a smaller --batch" in fails(capsys, argv, 1)


def test_train_then_evaluate(tmp_path, capsys):
    root, out = make_folder(tmp_path / "data"), tmp_path / "run"
    assert main(train_arguments(root, out)) == 0
    said = capsys.readouterr().out
    assert f"saved in {out / 'best.safetensors'}" in said
    assert main(["evaluate", str(out / "best.safetensors"), "--data", str(root), "--device", "cpu"]) == 0
    scores = capsys.readouterr().out
    assert "images   6\n" in scores
    assert "top-5" not in scores  # with two classes it would say nothing
    assert scores.split("top-1")[1].split("%")[0].strip() in said


def test_a_cut_checkpoint_and_a_run_of_other_settings_are_refused(tmp_path, capsys):
    root, out = make_folder(tmp_path / "data"), tmp_path / "run"
    assert main(train_arguments(root, out)) == 0
    capsys.readouterr()
    assert "differs in lr: 0.5, not 0.001" in fails(capsys, train_arguments(root, out, "--lr", "0.5"))
    last = out / "last.safetensors"
    last.write_bytes(last.read_bytes()[:100])
    assert "must be a whole safetensors file" in fails(capsys, ["evaluate", str(last)])


def test_a_path_that_cannot_be_a_directory_is_refused(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    argv = ["train", "--data", "digits", "--model", NETWORK, "-o", str(tmp_path / "file" / "run")]
    assert "`out` must be a directory that can be made" in fails(capsys, argv)


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (TrainingError("the loss became nan"), 1, "condconv: failed: the loss became nan\n"),
        (TrainingInterrupted("2 are saved"), 130, "interrupted: 2 are saved; to resume: condconv models 'a b'\n"),
        (KeyboardInterrupt(), 130, "interrupted: nothing more is saved; to try again: condconv models 'a b'\n"),
        (MissingExtraError('pip install "condconv[train]"'), 2, 'error: pip install "condconv[train]"\n'),
    ],
)
def test_each_kind_of_end_has_its_status(capsys, monkeypatch, error, status, message):
    def raising(arguments):
        raise error

    monkeypatch.setattr(models, "run", raising)
    assert message in fails(capsys, ["models", "a b"], status)


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_has_gone_ends_it_quietly(unbuffered):
    command = [sys.executable, "-m", "condconv", "models", NETWORK]
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_a_missing_extra_is_named():
    with pytest.raises(MissingExtraError, match=r'^nosuchpackage is needed .*: pip install "condconv\[train\]"$'):
        require_extra("nosuchpackage.part", "train")


def test_models_lists_cost_beside_the_paper(capsys):
    assert main(["models", NETWORK]) == 0
    header, row = capsys.readouterr().out.splitlines()
    names = "name", "experts", "params", "MADDs", "paper MADDs", "MADDs / paper", "paper top-1"
    assert header.split() == " ".join(names).split()
    assert row.split() == [NETWORK, "-", "0.5M", "41.0M", "-", "-", "50.3", "%"]
    assert main(["models", "resnet_cc*"]) == 0
    assert capsys.readouterr().out.splitlines()[1].split() == [
        "resnet_cc_50_8e", "8", "dense", "130.2M", "4208.8M", "4213M", "-0.1%", "78.6", "%"
    ]  # fmt: skip


def test_models_without_a_pattern_lists_all(capsys):
    assert main(["models"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]] == condconv.list_models()


@pytest.mark.parametrize(
    ("command", "status", "message"),
    [
        ("models resnet*", 0, ""),
        *(
            (command, 2, 'condconv: error: timm is needed here and is not installed: pip install "condconv[train]"\n')
            for command in (
                "train --data digits --model x",
                "train --data digits --recipe resnet_50",
                "evaluate x",
                "demo",
                "experiment starts --data digits",
                "report x",
                "make-static x --layers y -o z",
                "compress x -o z",
                "budget x",
                "export x --format onnx -o y.onnx",
            )
        ),
    ],
)
def test_commands_name_the_extra_that_is_missing(command, status, message):
    # The extras are hidden from a new process, as on a machine without them.
    code = (
        "import sys\n"
        "for name in ('timm', 'torchvision', 'accelerate', 'safetensors', 'tqdm', 'PIL', 'sklearn', 'matplotlib'):\n"
        "    sys.modules[name] = None\n"
        "from condconv.cli.main import main\n"
        f"sys.exit(main({command.split()}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ))
    assert (done.returncode, done.stderr) == (status, message)


def test_python_dash_m_is_the_command():
    done = subprocess.run([sys.executable, "-m", "condconv", "--version"], capture_output=True, text=True)
    assert done.stdout == f"condconv {condconv.__version__}\n"
