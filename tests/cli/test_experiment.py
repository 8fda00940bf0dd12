import shlex

import pytest

from condconv.cli.main import main


def _command(*more):
    return [
        "experiment",
        "begin-layer",
        "--data",
        "digits",
        "--epochs",
        "1",
        "--seeds",
        "2",
        "--num-experts",
        "2",
        *more,
    ]


def test_the_list_is_one_command_a_run_that_names_it(capsys, tmp_path):
    out = str(tmp_path)
    assert main(_command("-o", out, "--list")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 14  # seven rows of Table 4, two seeds
    words = shlex.split(lines[-1])
    assert words == ["condconv", *_command("-o", out), "--run", "7, without the classifier/1"]


def test_some_rows_of_an_experiment(capsys, tmp_path):
    chosen = ("-o", str(tmp_path), "--arms", "static", "7, without the classifier")
    assert main(_command(*chosen, "--list")) == 0
    lines = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
    names = [f"{label}/{seed}" for seed in (0, 1) for label in chosen[3:]]
    assert lines == [["condconv", *_command(*chosen), "--run", name] for name in names]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--arms", "static", "8"], "`--arms` must be rows of the table, got '8': they are static, "),
        (["--run", "8/0"], "`--run` must be one that --list names, got '8/0': such as static/0, "),
        (["--widths", "025"], "`widths` must not be given for 'begin-layer', which has width, num_experts"),
        (["--seeds", "0"], "`--seeds` must be a whole number from 1 to 1,000, got 0"),
        (["--jobs", "0"], "`--jobs` must be a whole number from 1 to 1,024, got 0"),
        (["--lr", "-1"], "`--lr` must be a number above 0 and at most 1,000,000, got -1.0"),
    ],
)
def test_what_cannot_be_done_is_one_line(capsys, tmp_path, arguments, message):
    assert main(_command("-o", str(tmp_path), *arguments)) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_one_run_then_the_table_of_what_is_there(capsys, tmp_path, monkeypatch):
    command = _command("-o", str(tmp_path), "--seeds", "1", "--batch-size", "450", "--width", "025", "--quiet")
    assert main([*command, "--run", "static/0"]) == 0
    monkeypatch.setattr("sys.executable", "/bin/false")  # every other run fails
    assert main(command) == 1
    shown = capsys.readouterr()
    assert "| static" in shown.out
    assert "settings of every run" not in shown.out
    assert shown.err.count("failed: ") == 6
    assert (tmp_path / "begin-layer" / "plot.png").is_file()
    assert "epochs 1, batch_size 450" in (tmp_path / "begin-layer" / "table.md").read_text()
