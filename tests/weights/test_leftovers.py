"""Files that fit and have more: what is left out is said, and what may be is offered by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import condconv
from condconv.errors import UsageError
from condconv.weights import load_state_dict

from .networks import assert_unchanged, copy_of, small


def loaded(more: dict[str, Tensor], prefix: str = "") -> condconv.LoadReport:
    source, model = small(), small(2)
    state = {prefix + name: value for name, value in source.state_dict().items()} | more
    report = load_state_dict(model, state)
    assert torch.equal(model.stem.weight, source.stem.weight)
    return report


def test_counters_of_a_profiler() -> None:
    modules = [name for name, _ in small().named_modules()]
    more = {f"{name}.{leaf}".strip("."): torch.zeros(1) for name in modules for leaf in ("total_ops", "total_params")}
    assert "counters of a profiler" in str(loaded(more))


def test_counters_do_not_stand_in_the_way_of_an_order() -> None:
    models = pytest.importorskip("torchvision").models
    state = models.mobilenet_v2(num_classes=10, width_mult=0.35).state_dict()
    state |= {f"{name.removesuffix('weight')}total_ops": torch.ones(1) for name in state if name.endswith("weight")}
    model = condconv.create_model("mobilenet_v2_cc_035_2e", num_classes=10)
    assert load_state_dict(model, state).matched == "by kind and order"


@pytest.mark.parametrize("shape", [(3,), (1, 3, 1, 1)])
def test_the_mean_of_images(shape: tuple[int, ...]) -> None:
    for name in ("mean", "std", "normalize.pixel_mean", "norm_layer.img_std"):
        report = loaded({name: torch.rand(shape)})
        assert f"left out {name}: the network does not normalise images, so give it images that are" in str(report)


@pytest.mark.parametrize(
    "name", ["loss.weight", "criterion.class_weight", "aux_head.conv.weight", "AuxLogits.fc.bias", "aux1.conv.0.weight"]
)
def test_parts_for_training_only(name: str) -> None:
    report = loaded({name: torch.rand(8, 8, 1, 1)})
    assert f"left out {name}: parts for training only, which the network does not have" in str(report)


def test_what_stands_beside_the_network_of_a_trainer() -> None:
    more = {"perceptual.vgg.0.weight": torch.rand(4, 3, 3, 3), "temperature": torch.ones(())}
    report = loaded(more, "model.")
    assert "left out perceptual.vgg.0.weight, temperature: they stand next to the network, which is under 'model.'" in (
        str(report)
    )


def test_two_networks_are_not_chosen_from() -> None:
    state = {f"{part}.{name}": value for part in ("left", "right") for name, value in small().state_dict().items()}
    with pytest.raises(UsageError, match=r"one network, got x with one under 'left.' and one under 'right.': "):
        load_state_dict(small(2), state, source="x")


def refusal(model: nn.Module, state: dict[str, Any]) -> str:
    before = copy_of(model)
    with pytest.raises(UsageError) as caught:
        load_state_dict(model, state)
    assert_unchanged(model, before)
    return str(caught.value)


def test_one_entry_too_many_is_offered_by_name() -> None:
    for more, patterns in (
        ({"queue": torch.zeros(4, 9)}, ["queue"]),
        ({"blocks.gamma": torch.ones(3), "prompt.tokens": torch.zeros(2, 2)}, ["blocks.gamma", "prompt.*"]),
    ):
        model, state = small(2), small().state_dict() | more
        message = refusal(model, state)
        offered = ",".join(patterns)
        assert f"with more: pass skip={offered!r} to leave that out, if the network computes the same" in message
        assert "depth" not in message
        load_state_dict(model, state, skip=patterns)


def test_a_bias_too_many_is_not_offered() -> None:
    message = refusal(small(2), small().state_dict() | {"stem.bias": torch.zeros(8)})
    assert "the network has no stem.bias. Probably it is this network's in another form" in message
    assert "skip" not in message


def test_more_blocks_are_another_depth() -> None:
    state = small().state_dict()
    state |= {name.replace("blocks.2", "blocks.3"): value for name, value in state.items() if "blocks.2" in name}
    message = refusal(small(2), state)
    assert "skip" not in message


def test_another_depth_or_form_is_said_of_layers_alone() -> None:
    timm = pytest.importorskip("timm")
    model = timm.create_model("resnet10t", num_classes=10)
    state = model.state_dict()
    assert "of another depth or form" in refusal(model, state | {"layer4.1.conv1.weight": torch.zeros(8, 8, 3, 3)})
    message = refusal(model, state | {"memory_bank": torch.zeros(5)})
    assert "pass skip='memory_bank'" in message
    message = refusal(model, {name: value for name, value in state.items() if "bn1" not in name})
    assert "depth" not in message


class WithAux(nn.Module):
    """A network with a head for training."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 4, 3)
        self.aux = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Linear(4, 2))
        self.head = nn.Linear(4, 2)


def test_a_part_that_the_file_lacks_is_offered() -> None:
    source, model = WithAux(), WithAux()
    state = {name: value for name, value in source.state_dict().items() if not name.startswith("aux")}
    assert "it was saved without these: pass skip='aux.*' to keep the network's own" in refusal(model, state)
    load_state_dict(model, state, skip=["aux.*"])
    load_state_dict(model, source.state_dict())  # with the part on both sides it is loaded
    assert torch.equal(model.aux[0].weight, source.aux[0].weight)


def test_parts_compiled_by_themselves() -> None:
    source, model = small(), small(2)
    state = source.state_dict()
    state = {f"module.{name}".replace("blocks.", "blocks._orig_mod."): value for name, value in state.items()}
    load_state_dict(model, state)
    assert torch.equal(model.blocks[0].pointwise.weight, source.blocks[0].pointwise.weight)
