"""Every message has four parts: which argument, the rule, what was got, and what to do; derived from the parser.

An option that takes a value is read by a rule, so a new one is walked through without a word here. One that means more
than its rule says has values of its own in `MEANT`.
"""

from __future__ import annotations

import argparse
import re
import sys
from dataclasses import MISSING, fields

import pytest

from condconv.cli.main import create_parser, main
from condconv.cli.parsing import Option
from condconv.errors import UsageError, shown
from condconv.lab.config import TrainConfig
from condconv.lab.rules import PATH, TEXT

LONG = "7" * 100_000
MODEL = "mobilenet_v1_cc_025_4e"
# What a command needs besides the option in question, all of it right.
NEEDED = {
    "train": ["--data", "digits", "--model", MODEL, "-o", "run"],
    "experiment": ["plug-in", "--data", "digits"],
    "evaluate": ["a.safetensors"],
    "report": ["a.safetensors"],
    "make-static": ["a.safetensors", "--layers", "x", "-o", "b.safetensors"],
    "compress": ["a.safetensors", "-o", "b.safetensors"],
    "budget": ["a.safetensors"],
    "export": ["a.safetensors", "--format", "onnx", "-o", "b.onnx"],
}
# Values that the rules let pass and the command does not, with the arguments that bring it that far.
MEANT = {
    ("models", "pattern"): ["transformer", LONG],
    ("bench", "--layers"): ["x9", LONG],
    ("bench", "--networks"): ["vgg", LONG],
    ("bench", "--experts"): ["vgg", "shared(rank=", "dense(rank=2)", LONG],
    ("bench", "--impl"): ["best", LONG],
    ("bench", "--device"): ["tpu", "cuda:x", LONG],
    ("bench", "--out"): ["no/such/a.json", ".", LONG],
    ("report", "--out"): ["page.pdf", "no/such/a.html", LONG],
    ("report", "checkpoint"): ["none.safetensors", LONG],
    ("evaluate", "checkpoint"): ["none.safetensors", ".", LONG],
    ("make-static", "checkpoint"): ["none.safetensors", LONG],
    ("compress", "checkpoint"): ["none.safetensors", LONG],
    ("budget", "checkpoint"): ["none.safetensors", LONG],
    ("budget", "--plot"): ["members.pdf", "no/such/members.svg", LONG],
    ("export", "checkpoint"): ["none.safetensors", LONG],
    ("experiment", "--run"): ["fourth/0", LONG],
    ("experiment", "--networks"): ["vgg", MODEL, LONG],
    ("experiment", "--data"): ["none", LONG],
    ("train", "--data"): ["none", "torch/nothing", "wds/none", LONG],
    ("train", "--val-data"): ["nowhere", LONG],
    ("train", "--model"): ["mobilenet_v1_24", LONG],
    ("train", "--model-option"): ["wings=2", "features_only=True", f"routing={'softmax(' * 3000}", f"scope={LONG}"],
    ("train", "--init-from"): ["none.safetensors", LONG],
    ("train", "--optimizer"): ["sloth", LONG],
    ("train", "--optimizer-option"): ["claws=2", "betas=0.5", f"eps={'[' * 60}{']' * 60}", f"{LONG}=1"],
    ("train", "--scheduler-option"): ["decay_rate=0.5", f"min_lr={LONG}"],
    ("train", "--auto-augment"): ["blur", LONG],
}
PARTS = re.compile(
    r"condconv: error: `(?P<name>[^`]{1,90})` must (?P<rule>.{2,900}), got (?P<value>.{1,800}?): (?P<remedy>.{3,600})\n"
)


def commands() -> dict[str, argparse.ArgumentParser]:
    (found,) = (each for each in create_parser()._actions if isinstance(each, argparse._SubParsersAction))
    return found.choices


def arguments() -> list[tuple[str, argparse.Action]]:
    return [
        (command, action)
        for command, parser in commands().items()
        for action in parser._actions
        if not isinstance(action, (argparse._HelpAction, argparse._VersionAction))
    ]


ARGUMENTS = arguments()
WITH_VALUE = [(command, action) for command, action in ARGUMENTS if action.nargs != 0]
FLAGS = [(command, action) for command, action in ARGUMENTS if action.nargs == 0]


def name_of(action: argparse.Action) -> str:
    return action.option_strings[0 if action.nargs == 0 else -1] if action.option_strings else action.dest


def ids(value: object) -> str | None:
    return name_of(value) if isinstance(value, argparse.Action) else value if isinstance(value, str) else None


def argv(command: str, action: argparse.Action, value: str) -> list[str]:
    needed = NEEDED.get(command, [])
    if action.option_strings:
        return [command, *needed, f"{action.option_strings[-1]}={value}"]
    return [command, value, *needed[1:]]


def refused(capsys, words: list[str], status: int = 2) -> re.Match[str]:
    """Run a command that cannot be right; returns the parts of its one line."""
    assert main(words) == status
    said = capsys.readouterr().err
    assert said.count("\n") == 1, said[:2000]
    assert len(said) < 1200
    assert "Traceback" not in said
    match = PARTS.fullmatch(said)
    assert match, said
    return match


def names(match: re.Match[str], action: argparse.Action) -> bool:
    """Return whether a message names an option as it is typed, or as the setting that it is."""
    return match["name"] in (name_of(action), action.dest)


@pytest.fixture(autouse=True, scope="module")
def one_parser():
    """Make the parser once: that takes longer than most of the calls."""
    parser = create_parser()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules[main.__module__], "create_parser", lambda: parser)
        yield


@pytest.fixture(autouse=True)
def in_a_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(("command", "action"), WITH_VALUE, ids=ids)
def test_a_value_is_refused_by_the_rule_of_its_option(capsys, command, action):
    assert isinstance(action, Option), f"give {name_of(action)} a rule, so that it says what is wrong with a value"
    wrong = [each for each in ("", "two", "-3", "1e400", "nan", LONG) if not action.rule.holds(action.rule.read(each))]
    assert wrong or (command, name_of(action)) in MEANT, f"no value is wrong for {name_of(action)}: add some to MEANT"
    for value in wrong:
        match = refused(capsys, argv(command, action, value))
        assert names(match, action)
        assert match["value"] == shown(action.rule.read(value))


@pytest.mark.parametrize(("command", "action"), [each for each in WITH_VALUE if each[1].option_strings], ids=ids)
def test_a_value_that_is_missing_is_named(capsys, command, action):
    match = refused(capsys, [command, *NEEDED.get(command, []), name_of(action)])
    assert match["name"] == name_of(action)
    assert match["remedy"] == f"see condconv {command} --help"


@pytest.mark.parametrize(("command", "action"), FLAGS, ids=ids)
def test_a_flag_with_a_value_is_named(capsys, command, action):
    match = refused(capsys, [command, *NEEDED.get(command, []), f"{name_of(action)}={LONG}"])
    assert match["name"].split("/")[0] == name_of(action)


@pytest.mark.parametrize("command", commands())
def test_what_a_command_does_not_have_is_named(capsys, command):
    match = refused(capsys, [command, *NEEDED.get(command, []), "--colour", "red"])
    assert match["value"] == "'--colour'"
    if command not in ("models", "bench", "demo"):
        assert refused(capsys, [command])["value"] == "nothing"


def test_every_text_has_values_that_its_rule_lets_pass():
    """Those of `train` and `experiment` are settings; where a run reads images is for the commands that read some."""
    free = {name_of(each) for _, each in WITH_VALUE if isinstance(each, Option) and each.rule in (TEXT, PATH)}
    known = {name for _, name in MEANT}
    assert free - known <= {"--arms", "--data-dir", "--layers", "--skip", "--data"}


@pytest.mark.parametrize(
    ("command", "name", "value"),
    [
        pytest.param(*key, value, id=f"{key[0]} {key[1]} {value[:20]}")
        for key, values in MEANT.items()
        for value in values
    ],
)
def test_a_value_that_means_nothing_is_refused_in_the_same_form(capsys, command, name, value):
    (action,) = (each for of, each in ARGUMENTS if of == command and name_of(each) == name)
    match = refused(capsys, argv(command, action, value))
    assert names(match, action) or match["name"] in MEANT_NAMES.get((command, name), ())


# What the fault is called where it is found.
MEANT_NAMES = {
    ("train", "--init-from"): ("path",),
    ("train", "--model-option"): ("model",),
    ("train", "--data"): ("data_dir",),
    ("train", "--val-data"): ("data",),
}

SETTINGS = {each.name: each for each in fields(TrainConfig)}
WRONG = ("", "two", -3, 1e300, float("nan"), 10**5000, ["x"], {"x": {1}}, None, True, LONG, "a\0b", object())


@pytest.mark.parametrize("name", SETTINGS)
def test_a_setting_is_refused_in_the_same_form(name):
    rule = SETTINGS[name].metadata["rule"]
    wrong = [value for value in WRONG if not rule.holds(value)]
    assert wrong
    right = {each.name: "digits" for each in SETTINGS.values() if each.default is each.default_factory is MISSING}
    for value in wrong:
        with pytest.raises(UsageError) as caught:
            TrainConfig(**{**right, name: value})
        match = PARTS.fullmatch(f"condconv: error: {caught.value}\n")
        assert match
        assert match["name"] == name
        assert len(match["value"]) <= 80
