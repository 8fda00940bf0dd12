"""The networks for small images: sizes worked by hand, what experts see, options."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import nn

import condconv
from condconv import create_model, get_model_info
from condconv.errors import UsageError
from condconv.nn import ConditionalLayer, DeltaExperts, DenseExperts, SigmoidRouting

NAMES = ("small_separable", "small_dense")


def conditional(model: nn.Module) -> dict[str, Any]:
    return {name: module for name, module in model.named_modules() if isinstance(module, ConditionalLayer)}


def test_costs_by_hand() -> None:
    """Two numbers per channel for each norm; of 32 pixels, the maps are 16 and 8, or 32, 16 and 8 pixels wide."""
    blocks = ((16, 32, 16), (32, 32, 16), (32, 64, 8), (64, 64, 8))  # channels in and out, pixels
    params = 27 * 16 + 2 * 16 + sum(9 * c + 2 * c + c * o + 2 * o for c, o, _ in blocks) + 64 * 10 + 10
    madds = 27 * 16 * 16**2 + sum((9 * c + c * o) * side**2 for c, o, side in blocks) + 64 * 10
    separable = condconv.count(create_model("small_separable_100", num_classes=10), torch.zeros(1, 3, 32, 32)).total
    assert (separable.params, separable.madds) == (params, madds)
    layers = ((3, 8, 32), (8, 16, 16), (16, 32, 8), (32, 32, 8))
    params = sum(9 * c * o + 2 * o for c, o, _ in layers) + 32 * 10 + 10
    madds = sum(9 * c * o * side**2 for c, o, side in layers) + 32 * 10
    dense = condconv.count(create_model("small_dense_100", num_classes=10), torch.zeros(1, 3, 32, 32)).total
    assert (dense.params, dense.madds) == (params, madds)


@pytest.mark.parametrize("side", [16, 32])
@pytest.mark.parametrize("family", NAMES)
def test_layers_with_experts_see_maps(family: str, side: int) -> None:
    model = create_model(f"{family}_cc_100_2e", num_classes=10).eval()
    seen = []
    for layer in conditional(model).values():
        layer.register_forward_hook(lambda module, given, output: seen.append((given[0].shape[2:], output.shape[2:])))
    assert model(torch.randn(2, 3, side, side)).shape == (2, 10)
    assert len(seen) == {"small_separable": 8, "small_dense": 4}[family]
    assert min(min(sides) for pair in seen for sides in pair) == side // 4 >= 4


def test_where_experts_are() -> None:
    separable, dense = (conditional(create_model(f"{family}_cc_100_2e", num_classes=10)) for family in NAMES)
    blocks = [f"blocks.{stage}.{block}" for stage in (0, 1) for block in (0, 1)]
    assert list(separable) == [f"{block}.conv_{kind}" for block in blocks for kind in ("dw", "pw")]
    assert list(dense) == ["conv_stem", "blocks.0.0.conv", "blocks.1.0.conv", "blocks.2.0.conv"]
    with_classifier = create_model("small_dense_cc_100_2e", num_classes=10, first_layer=4, conditional_classifier=True)
    assert list(conditional(with_classifier)) == ["blocks.2.0.conv", "classifier"]


@pytest.mark.parametrize("family", NAMES)
def test_any_width_is_whole_channels(family: str) -> None:
    for width, expected in (("025", 0.25), ("113", 1.13), ("400", 4.0)):
        full, wide = (create_model(f"{family}_{size}", num_classes=2) for size in ("100", width))
        channels = [each.out_channels for each in full.modules() if isinstance(each, nn.Conv2d)]
        found = [each.out_channels for each in wide.modules() if isinstance(each, nn.Conv2d)]
        assert found == [int(expected * each + 0.5) for each in channels]


@pytest.mark.parametrize("family", NAMES)
def test_routing_reads_a_standardised_input_unless_another_is_asked_for(family: str) -> None:
    info = get_model_info(f"{family}_cc_100_2e")
    assert (info.routing, info.experts) == ("sigmoid(standardize=True)", "deltas")
    for options, standardized in (({}, True), ({"routing": info.routing}, True), ({"routing": "sigmoid"}, False)):
        model = create_model(info.name, num_classes=2, **options)
        found = [each.standardization is not None for each in model.modules() if isinstance(each, SigmoidRouting)]
        assert found == [standardized] * 4
    assert get_model_info("mobilenet_v1_cc_025_2e").routing == "sigmoid"


@pytest.mark.parametrize("experts", [None, "dense", "shared"])
@pytest.mark.parametrize("family", NAMES)
def test_they_start_as_the_static_network_of_the_seed(family: str, experts: str | None) -> None:
    models = []
    for name, options in ((f"{family}_100", {}), (f"{family}_cc_100_4e", {"experts": experts})):
        torch.manual_seed(3)
        models.append(create_model(name, num_classes=10, **options).eval())
    x = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(models[1](x), models[0](x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", NAMES)
def test_the_papers_setting_is_within_reach(family: str) -> None:
    name = f"{family}_cc_100_4e"
    model = create_model(name, num_classes=10, experts="dense", routing="sigmoid", init="random")
    layers = conditional(model)
    assert all(isinstance(each.experts, DenseExperts) for each in layers.values())
    last = [*layers.values()][-1]
    assert torch.cosine_similarity(*last.weight[:2].flatten(1), dim=0).abs() < 0.1
    assert all(isinstance(each.experts, DeltaExperts) for each in conditional(create_model(name)).values())


@pytest.mark.parametrize("family", NAMES)
def test_squeeze_and_excitation_is_in_every_block(family: str) -> None:
    torch.manual_seed(0)
    model = create_model(f"{family}_100", num_classes=10, se=0.25)
    gates = {name: module for name, module in model.named_modules() if name.endswith(".se")}
    of_blocks = {"small_separable": [16, 32, 32, 64], "small_dense": [16, 32, 32]}[family]
    assert [each.conv_expand.out_channels for each in gates.values()] == of_blocks
    assert [each.conv_reduce.out_channels for each in gates.values()] == [each // 4 for each in of_blocks]
    x = torch.randn(2, 3, 16, 16)
    before = model.eval()(x)
    nn.init.constant_(gates["blocks.1.0.se"].conv_expand.bias, 3.0)
    assert not torch.allclose(model(x), before)
    routed = create_model(f"{family}_cc_100_2e", num_classes=10, se=0.25)
    assert not any(".se." in name for name in conditional(routed))
    assert routed(x).shape == (2, 10)


@pytest.mark.parametrize("options", [{}, {"se": 0.5}, {"feature_cls": "getter"}], ids=str)
@pytest.mark.parametrize("family", NAMES)
def test_features(family: str, options: dict[str, Any]) -> None:
    condconv.register_timm_models()
    model = timm.create_model(f"condconv_{family}_cc_100_8e", features_only=True, in_chans=1, **options).eval()
    maps = model(torch.randn(2, 1, 32, 32))
    channels, reduction = model.feature_info.channels(), model.feature_info.reduction()
    assert reduction[-1] == 4
    assert [tuple(each.shape) for each in maps] == [
        (2, count, 32 // each, 32 // each) for count, each in zip(channels, reduction, strict=True)
    ]


def test_a_trace_has_no_blocks_for_squeeze_and_excitation() -> None:
    with pytest.raises(UsageError, match="`se` must be None for a network without blocks, got 0.25: leave out"):
        create_model("small_dense_100", features_only=True, feature_cls="fx", se=0.25)


def test_other_networks_have_no_such_option() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'se'"):
        create_model("mobilenet_v1_025", se=0.25)
