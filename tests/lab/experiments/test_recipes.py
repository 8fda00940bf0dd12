import inspect
import re
from dataclasses import fields, replace

import pytest

from condconv.lab.config import TrainConfig
from condconv.lab.experiments.recipes import RECIPES
from condconv.lab.train import train
from condconv.models.paper import ROWS
from tests.lab.samples import make_folder

# One stands for all by default: they differ in numbers.
NAMES = [pytest.param(name, marks=() if name == "mnasnet_a1" else pytest.mark.slow) for name in RECIPES]


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_takes_two_steps_on_small_images(tmp_path, name):
    recipe = RECIPES[name](str(make_folder(tmp_path / "data", train=2, val=1, size=40)))
    small = {"image_size": 32, "batch_size": 2, "epochs": 1, "warmup_epochs": 0, "workers": 0, "device": "cpu"}
    result = train(replace(recipe, out=str(tmp_path / "run"), **small))
    assert 0 < result.metrics[0].train_loss < 20


@pytest.mark.parametrize("name", RECIPES)
def test_the_docstring_says_what_the_paper_prints(name):
    """Each expected accuracy is that of the paper's row; the command names the recipe."""
    text = re.sub(r"\s+", " ", inspect.getdoc(RECIPES[name]))
    expected = re.findall(r"([\d.]+) for `(\w+)`", text.partition("Expected top-1")[2])
    assert len(expected) >= 2
    for top1, network in expected:
        assert float(top1) == ROWS[network].top1
    assert f"condconv train --recipe {name} --data imagenet/" in text
    assert RECIPES[name]("imagenet/").model in [network for _, network in expected]


def test_the_static_twin_differs_in_what_only_experts_have():
    conditional, static = RECIPES["resnet_50"]("x"), RECIPES["resnet_50"]("x", "resnet_50")
    names = [each.name for each in fields(TrainConfig)]
    differing = {name for name in names if getattr(conditional, name) != getattr(static, name)}
    assert differing == {"model", "out", "expert_dropout"}


def test_the_authors_rate_is_for_256_images():
    """0.016 for each 256 images of 2048."""
    assert RECIPES["efficientnet_b0"]("x").lr == pytest.approx(0.128)
