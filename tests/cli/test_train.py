"""Options of `condconv train`: groups, entries of mappings, recipes and what replaces their values."""

import re

import pytest

from condconv.cli.main import create_parser, main
from condconv.cli.train import _config, _report
from condconv.errors import UsageError
from condconv.lab.experiments.recipes import RECIPES
from condconv.lab.saved.metrics import EpochMetrics, TrainResult, as_csv
from tests.files.checkpoint_format.samples import forge, header, tensors


def config(*argv):
    return _config(create_parser().parse_args(["train", *argv]))


def test_the_help_is_in_groups(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    said = capsys.readouterr().out
    for title in ("data:", "network:", "optimisation:", "regularisation:", "augmentation:", "run:"):
        assert f"\n{title}\n" in said
    for option in ("--optimizer-option NAME=VALUE", "--cache-images GIB", "--init-from FILE", "--clip-grad NORM"):
        assert f"  {option}" in said
    assert "--image-size SIZE" in said
    assert all(name in said for name in RECIPES)


def test_the_help_has_each_default_once(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    options = re.split(r"\n  (?=-)", capsys.readouterr().out)
    assert all(option.count("(default:") <= 1 for option in options)
    defaults = {option.split(",")[0]: " ".join(option.split()).partition("(default: ")[2] for option in options}
    assert (defaults["--router-decay"], defaults["--norm-decay"], defaults["--compile"]) == ("on)", "off)", "off)")


def test_entries_are_read_as_values_or_words():
    made = config(
        *("--data", "digits", "--model", "x", "--model-option", "drop_rate=0.2", "--model-option", "routing=softmax"),
        *("--optimizer-option", "betas=(0.9, 0.99)", "--compile", "--no-channels-last", "--clip-grad", "none"),
    )
    assert made.model_options == {"drop_rate": 0.2, "routing": "softmax"}
    assert made.optimizer_options == {"betas": (0.9, 0.99)}
    assert (made.compile, made.channels_last, made.clip_grad) == (True, False, None)
    assert made.out == "runs/digits-x-seed0"


def test_what_is_given_replaces_values_of_the_recipe():
    recipe = RECIPES["efficientnet_b0"]("imagenet/")
    made = config(
        *("--recipe", "efficientnet_b0", "--data", "imagenet/", "--lr", "0.5", "--ema-decay", "none"),
        *("--optimizer-option", "eps=0.1", "--seed", "3"),
    )
    assert (made.lr, made.ema_decay, made.seed) == (0.5, None, 3)
    assert made.optimizer_options == {**recipe.optimizer_options, "eps": 0.1}
    assert made.model_options == recipe.model_options
    assert (made.model, made.epochs) == (recipe.model, recipe.epochs)
    assert made.out == f"runs/imagenet-{recipe.model}-seed3"


def test_a_recipe_of_the_static_twin():
    made = config("--recipe", "resnet_50", "--data", "x", "--model", "resnet_50")
    assert (made.model, made.expert_dropout) == ("resnet_50", 0.0)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--recipe", "resnet_50"], "`--data` must be given, got nothing: see"),
        (["--data", "x"], "`--model` must be given, got nothing: see"),
        (
            ["--data", "x", "--model", "y", "--optimizer-option", "eps"],
            "`--optimizer-option` must be NAME=VALUE, got 'eps'",
        ),
        (["--data", "x", "--recipe", "bread"], "`--recipe` must be one of efficientnet_b0, mnasnet_a1"),
    ],
)
def test_wrong_options_are_named(argv, message):
    with pytest.raises(UsageError) as caught:
        config(*argv)
    assert message in str(caught.value)


def test_a_name_with_a_slash_gives_one_directory():
    assert config("--data", "torch/cifar10", "--model", "x").out == "runs/torch-cifar10-x-seed0"


def test_what_is_noted_of_routing_is_printed_at_the_end(tmp_path, capsys):
    epoch = EpochMetrics(1, 0.1, 0.5, 0.6, 0.75, None, 100.0, 2.0, 0)
    forge(tmp_path / "best.safetensors", header(), tensors())
    (tmp_path / "metrics.csv").write_text(as_csv((epoch,), EpochMetrics))
    made = config("--data", "digits", "--model", "x", "--epochs", "1")
    paths = (tmp_path, tmp_path / "last.safetensors", tmp_path / "best.safetensors")
    for note in ("routing was not judged: seven words and a remedy", None):
        _report(made, TrainResult((epoch,), *paths, params=5, images=640, routing_note=note))
        last = capsys.readouterr().out.splitlines()[-1]
        assert last == note if note else last.startswith("training speed: 100 images/s")
