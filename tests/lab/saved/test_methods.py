"""A method as a setting of a run: what it becomes in the options that a checkpoint keeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from condconv.errors import UsageError
from condconv.lab.saved.network import build_from_zoo, resolved_options, start_options
from condconv.models import create_model
from condconv.nn import METHODS, ConditionalLayer, SigmoidRouting
from tests.lab.samples import settings


@pytest.mark.parametrize("method", METHODS)
def test_options_are_those_that_a_method_is_made_of(tmp_path: Path, method: str) -> None:
    experts = METHODS[method].num_experts
    config = settings(tmp_path, model=f"mobilenet_v1_cc_025_{experts}e", method=method)
    options = resolved_options(config, 32, updates=500)
    assert options["experts"] == METHODS[method].experts
    assert options["routing"] == METHODS[method].routing.format(annealing_steps=50)  # a tenth of the updates
    assert options["scope"] == METHODS[method].scope
    assert "method" not in options  # the network stays what it is, even if a method changes
    network = build_from_zoo(settings(tmp_path, model=config.model, model_options=options), 7, 1)
    layers = [layer for layer in network.modules() if isinstance(layer, ConditionalLayer)]
    assert {layer.num_experts for layer in layers} == {experts}
    assert len(layers) == (
        9 if method == "dcd" else 17
    )  # 8 blocks of two, and the classifier; no depthwise ones for DCD


def test_ours_keep_their_options_and_start_as_the_static_network(tmp_path: Path) -> None:
    """Random routers would start kernels apart by chance; the paper's networks start so."""
    config = settings(tmp_path, model="mobilenet_v1_cc_025_4e", method="deltas(scale=0.1)")
    assert resolved_options(config, 32)["experts"] == "deltas(scale=0.1)"
    assert start_options(config) == {"init": "same_output"}
    assert start_options(settings(tmp_path, model=config.model, method="condconv")) == {}
    assert start_options(settings(tmp_path, model=config.model)) == {}
    network = create_model(config.model, method=config.method)
    routers = [module for module in network.modules() if isinstance(module, SigmoidRouting)]
    assert len(routers) == 9  # one per block, and that of the classifier
    assert not any(module.fc.weight.any() for module in routers)


def test_steps_that_are_given_stay(tmp_path: Path) -> None:
    config = settings(tmp_path, model="mobilenet_v1_cc_025_4e", method="dyconv(annealing_steps=7)")
    assert "annealing_steps=7)" in resolved_options(config, 32, updates=500)["routing"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"method": "nope"}, "`method` must be one of condconv, dyconv, odconv, dcd, weightnet, se, deltas, shared"),
        ({"method": "se"}, "`num_experts` must be 1 for the method 'se', which has one kernel, got 4: leave it out"),
        ({"method": "dyconv", "model_options": {"routing": "softmax"}}, "`routing` must not be given with a method"),
        ({"model_options": {"method": "dyconv"}}, "`model_options` must not have a method, got 'dyconv': give it as a"),
        ({"method": "se", "model": "mobilenet_v1_025"}, "`method` must not be given for 'mobilenet_v1_025', which has"),
    ],
)
def test_what_does_not_go_with_a_method(tmp_path: Path, given: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        resolved_options(settings(tmp_path, **{"model": "mobilenet_v1_cc_025_4e", **given}), 32)
