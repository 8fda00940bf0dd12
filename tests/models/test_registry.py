"""Networks by name: placement, shapes, starts, what a name may be."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import timm
import torch
from torch import nn

from condconv import Scope, create_model, get_model_info, list_models
from condconv.errors import UsageError
from condconv.models.families import FAMILIES
from condconv.nn import ConditionalLayer, RoutingFunction, SigmoidRouting

# The first network of each family with the fewest experts, its conditional convolutions and its routing functions.
SMALL = {
    "mobilenet_v1_cc_025_2e": (16, 9),
    "mobilenet_v2_cc_035_2e": (34, 13),
    "mnasnet_a1_cc_050_2e": (18, 6),
    "resnet_cc_50_2e": (10, 3),
    "efficientnet_cc_b0_2e": (24, 8),
    "tf_efficientnet_cc_b0_2e": (24, 8),
    "small_separable_cc_100_2e": (8, 4),
    "small_dense_cc_050_2e": (4, 4),
}


def conditional(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, ConditionalLayer)]


def test_every_listed_name_is_what_it_says() -> None:
    names = list_models()
    assert len(names) == len(set(names)) == 44
    for name in names:
        info = get_model_info(name)
        assert info.name == name
        assert ("_cc_" in name) == (info.num_experts is not None)
        assert name.startswith(info.family)
        assert info.placement
        if info.paper is not None:
            assert info.paper.source
            assert 50 < info.paper.top1 < 80
    without_row = {name for name in names if get_model_info(name).paper is None}
    assert {name.removeprefix("tf_") for name in without_row} == {
        *("efficientnet_b0", "efficientnet_cc_b0_4e", "efficientnet_cc_b0_8e"),  # the paper's pad as TensorFlow does
        *("efficientnet_b0_depth", "efficientnet_cc_b0_depth_8e"),
        *("small_separable_100", "small_separable_cc_100_8e", "small_dense_100", "small_dense_cc_100_8e"),
    }


@pytest.mark.parametrize(
    ("name", "timm_name"),
    [
        ("mobilenet_v1_cc_100_8e", "mobilenetv1_100"),
        ("mobilenet_v1_125", "mobilenetv1_125"),
        ("mobilenet_v1_050", None),
        ("mobilenet_v2_050", "mobilenetv2_050"),
        ("mobilenet_v2_060", None),
        ("mnasnet_a1_cc_075_2e", "semnasnet_075"),
        ("resnet_cc_50_8e", "resnet50"),
        ("tf_efficientnet_cc_b0_depth_8e", "tf_efficientnet_b1"),
    ],
)
def test_what_timm_calls_the_static_network(name: str, timm_name: str | None) -> None:
    assert get_model_info(name).timm_name == timm_name


@pytest.mark.parametrize("name", SMALL)
def test_placement_and_routing(name: str) -> None:
    """One routing per block; the classifier and a head on their own; squeeze-and-excitation static."""
    model = create_model(name, num_classes=10)
    convolutions, routings = SMALL[name]
    layers = conditional(model)
    assert sum(layer != FAMILIES[get_model_info(name).family].classifier for layer in layers) == convolutions
    assert sum(isinstance(module, RoutingFunction) for module in model.modules()) == routings
    assert not any(".se." in layer for layer in layers)
    assert model(torch.randn(2, 3, 64, 64)).shape == (2, 10)


def test_placement_of_the_paper() -> None:
    # Blocks 6 to 13 are the fourth stage's six and the fifth's two.
    separable = [f"blocks.3.{i}" for i in range(6)] + ["blocks.4.0", "blocks.4.1"]
    expected = {
        "mobilenet_v1_cc_025_4e": [f"{block}.conv_{p}" for block in separable for p in ("dw", "pw")] + ["classifier"],
        "resnet_cc_50_2e": [f"layer4.{i}.conv{j}" for i in range(3) for j in (1, 2, 3)] + ["layer4.0.downsample.0"],
    }
    for name, layers in expected.items():
        assert sorted(conditional(create_model(name, num_classes=10))) == sorted(layers)


def test_layers_are_counted_as_the_paper_does() -> None:
    """CC-MobileNetV1: layer 1 is the stem, 2 to 14 the separable blocks, 15 the classifier."""
    build = {"name": "mobilenet_v1_cc_025_2e", "num_classes": 10}
    assert conditional(create_model(**build, first_layer=15)) == ["classifier"]
    assert conditional(create_model(**build, first_layer=14))[:2] == ["blocks.4.1.conv_dw", "blocks.4.1.conv_pw"]
    assert conditional(create_model(**build, first_layer=1))[0] == "conv_stem"
    assert conditional(create_model(**build, first_layer=2))[0] == "blocks.0.0.conv_dw"
    assert "classifier" not in conditional(create_model(**build, conditional_classifier=False))


def test_the_layers_of_mobilenet_v2_are_arguments() -> None:
    build = {"name": "mobilenet_v2_cc_035_2e", "num_classes": 10}
    full = set(conditional(create_model(**build)))
    assert {"conv_head", "classifier", "blocks.3.0.conv_pw"} <= full
    assert full - set(conditional(create_model(**build, conditional_head=False))) == {"conv_head"}
    assert full - set(conditional(create_model(**build, conditional_classifier=False))) == {"classifier"}
    last_six = {name for name in full if name.startswith(("blocks.4.1", "blocks.4.2", "blocks.5", "blocks.6"))}
    # Blocks 12 to 17 are layers 13 to 18: the first is the stem.
    assert set(conditional(create_model(**build, first_layer=13, conditional_head=False))) - {"classifier"} == last_six


@pytest.mark.parametrize(
    ("options", "routings"),
    [
        ({"scope": "layer"}, 17),
        ({"scope": Scope("block", every=2)}, 5),
        ({"scope": "block(every=2)"}, 5),
        ({"scope": "network"}, 1),
        ({"scope": Scope("block", blocks=lambda name, module: name in ("blocks.4.0", "blocks.4.1"))}, 15),
    ],
    ids=["layer", "two blocks", "the same as text", "network", "two blocks of ones own"],
)
def test_scopes(options: dict, routings: int) -> None:
    """16 convolutions in 8 blocks, and the classifier."""
    model = create_model("mobilenet_v1_cc_025_2e", num_classes=10, **options)
    assert sum(isinstance(module, SigmoidRouting) for module in model.modules()) == routings
    assert model(torch.randn(2, 3, 64, 64)).shape == (2, 10)


def test_blocks_route_whatever_the_size_of_the_image() -> None:
    """The last maps of a 32-pixel image have one pixel; its blocks are blocks all the same."""
    model = create_model("mobilenet_v1_cc_025_2e", num_classes=10)
    assert isinstance(model.blocks[4][1].routing_fn, SigmoidRouting)
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 10)


def test_same_seed_same_static_layers() -> None:
    models = []
    for name in ("mobilenet_v1_025", "mobilenet_v1_cc_025_4e"):
        torch.manual_seed(3)
        models.append(create_model(name, num_classes=10))
    for layer in ("conv_stem", "blocks.2.1.conv_pw"):
        first, second = (model.get_submodule(layer).weight for model in models)
        torch.testing.assert_close(first, second, rtol=0, atol=0)


FAR_APART = {"init": "same_output", "expert_spread": 2.5}


def test_experts_start_apart_unless_asked_otherwise() -> None:
    """Drawn one by one they have nothing in common; from one kernel, with noise of half its spread, nearly all."""
    # Of two experts: the cosine is (1 - n^2 / 2) / (1 + n^2 / 2) for noise n.
    for options, low, high in (({}, -0.1, 0.1), ({"init": "same_output"}, 0.7, 0.9), (FAR_APART, -0.6, -0.4)):
        layer = create_model("mobilenet_v1_cc_025_2e", num_classes=2, **options).get_submodule("blocks.4.1.conv_pw")
        assert low < torch.cosine_similarity(*layer.weight.flatten(1), dim=0) < high


@pytest.mark.parametrize("start", [{"init": "same_output"}, FAR_APART], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_preserving_start_is_the_static_network_of_the_seed(dtype: torch.dtype, start: dict) -> None:
    torch.manual_seed(3)
    static = create_model("mobilenet_v1_025", num_classes=10, output_stride=8, dtype=dtype).eval()
    torch.manual_seed(3)
    model = create_model("mobilenet_v1_cc_025_4e", num_classes=10, output_stride=8, dtype=dtype, **start).eval()
    x = torch.randn(2, 3, 32, 32, dtype=dtype)
    torch.testing.assert_close(model(x), static(x), rtol=1e-4, atol=1e-5)
    assert not torch.equal(model.classifier.weight[0], model.classifier.weight[1])


def test_a_preserving_start_is_checked_on_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Zeros would hide a wrong kernel: no layer of these networks has a bias before its norm."""
    seen = []

    def look(model: Any, example: Any, expected: Any, output: Any) -> bool:
        seen.extend(example)
        return True

    monkeypatch.setattr("condconv.convert.exchange.check_output", look)
    numbers = torch.get_rng_state()
    create_model("mobilenet_v1_cc_025_2e", num_classes=2, in_chans=1, init="same_output")
    after = torch.get_rng_state()
    torch.set_rng_state(numbers)
    create_model("mobilenet_v1_cc_025_2e", num_classes=2, in_chans=1, init="same_output")
    assert seen[0].shape == (1, 1, 64, 64)
    assert 0.9 < seen[0].std() < 1.1
    assert torch.equal(*seen)
    assert torch.equal(after, torch.get_rng_state())


@pytest.mark.parametrize(("stride", "size"), [(32, 224), (16, 96), (8, 32), (4, 16), (2, 8), (8, 33), (2, 7)])
def test_output_stride_of_mobilenet_v1_leaves_out_the_earliest_halvings(stride: int, size: int) -> None:
    model = create_model("mobilenet_v1_025", num_classes=7, in_chans=1, output_stride=stride).eval()
    x = torch.randn(2, 1, size, size)
    with torch.no_grad():
        last, maps = model.forward_intermediates(x)
        assert model(x).shape == (2, 7)
    assert last.shape[-2:] == (-(-size // stride),) * 2
    # 32 over the stride is left out of the five reductions 2, 4, 8, 16, 32.
    surplus = 32 // stride
    assert [entry["reduction"] for entry in model.feature_info] == [
        max(1, each // surplus) for each in (2, 4, 8, 16, 32)
    ]
    assert [(m.shape[1], m.shape[2]) for m in maps] == [
        (entry["num_chs"], -(-size // entry["reduction"])) for entry in model.feature_info
    ]
    features = create_model("mobilenet_v1_025", features_only=True, in_chans=1, output_stride=stride).eval()
    assert [m.shape[2] for m in features(x)] == [-(-size // each) for each in features.feature_info.reduction()]
    assert all(module.dilation == (1, 1) for module in model.modules() if isinstance(module, nn.Conv2d))


def test_output_stride_of_the_others_is_timms() -> None:
    for name in ("mobilenet_v2_035", "resnet_18"):
        model = create_model(name, num_classes=0, output_stride=8).eval()
        assert model.forward_features(torch.randn(1, 3, 64, 64)).shape[2:] == (8, 8)


def test_timms_methods_work_with_experts() -> None:
    model = create_model("mobilenet_v1_cc_025_2e", num_classes=10, global_pool="max", drop_path_rate=0.1, bn_eps=1e-3)
    assert model.bn1.eps == 1e-3
    model.set_grad_checkpointing()
    x = torch.randn(2, 3, 64, 64)
    model(x).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    model.reset_classifier(3, "avg")
    assert model(x).shape == (2, 3)
    assert set(model.group_matcher()) == {"stem", "blocks"}


def test_no_classes_gives_features() -> None:
    for name in ("mobilenet_v1_cc_025_2e", "mobilenet_v2_cc_035_2e"):
        model = create_model(name, num_classes=0)
        assert model(torch.randn(2, 3, 64, 64)).shape == (2, model.num_features)
        assert not any("classifier" in layer for layer in conditional(model))


def test_no_fold_of_names_into_one_another() -> None:
    for bad in (
        "mobilenet_v1",
        "mobilenet_v1_50",
        "mobilenet_v1_cc_050",
        "mobilenet_v1_050_8e",
        "mobilenet_v1_000",
        "mobilenet_v1_cc_000_2e",
        "mobilenet_v1_cc_050_0e",
        "mobilenet_v1_٠٥٠",  # digits, and not those of a name
        "mobilenet_v1_cc_050_1٨e",
        "mobilenet_v1_cc_050_8e.in1k",
        "resnet50",
        "resnet_51",
        "efficientnet_cc_b9_8e",
        "",
    ):
        with pytest.raises(UsageError, match=r"`name` must be one of condconv.list_models\(\), such as "):
            create_model(bad)
    with pytest.raises(ValueError, match=r"such as resnet_50, .*, got 'resnet50'"):
        create_model("resnet50")


def test_other_sizes_and_experts() -> None:
    model = create_model("mobilenet_v1_cc_010_3e", num_classes=2)
    assert model.conv_stem.out_channels == 8  # 3.2, and timm's least
    assert get_model_info("mobilenet_v1_cc_010_3e").paper is None
    assert create_model("mobilenet_v2_060", num_classes=2)(torch.randn(1, 3, 64, 64)).shape == (1, 2)
    assert create_model("mnasnet_a1_cc_060_2e", num_classes=2)(torch.randn(1, 3, 64, 64)).shape == (1, 2)
    assert conditional(create_model("resnet_cc_18_2e", num_classes=2))[0] == "layer4.0.conv1"


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("mobilenet_v1_100", "mobilenetv1_100"),
        ("mobilenet_v1_125", "mobilenetv1_125"),
        ("mobilenet_v2_140", "mobilenetv2_140"),
        ("mnasnet_a1_075", "semnasnet_075"),
    ],
)
def test_any_width_is_made_as_those_with_a_name(ours: str, theirs: str) -> None:
    """The generator behind the names, which is not public, still makes the same networks."""
    assert str(create_model(ours)) == str(timm.create_model(theirs))


V1, R18 = "mobilenet_v1_cc_025_2e", "resnet_cc_18_2e"


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (None, {}, "`name` must be a text, got None"),
        (50, {}, "`name` must be a text, got 50"),
        *((V1, {"num_classes": bad}, f"`num_classes` must be a whole number of at least 0, got {bad!r}")
          for bad in (-1, 1.5, "8", None, True)),
        *((V1, {"in_chans": bad}, f"`in_chans` must be a whole number of at least 1, got {bad!r}")
          for bad in (0, 3.0, "3", None, True)),
        *((V1, {"first_layer": bad}, f"`first_layer` must be a whole number or None, got {bad!r}")
          for bad in (1.5, "8", True)),
        (V1, {"first_layer": 0}, "`first_layer` must lie between 1 and 15, got 0"),
        (V1, {"first_layer": 16}, "`first_layer` must lie between 1 and 15, got 16"),
        (V1, {"first_layer": 15, "conditional_classifier": False},
         "`first_layer` must leave a layer with experts, got 15 with only classifier from there"),
        (V1, {"scope": None}, '`scope` must be "layer", "block", "network" or a Scope, got None'),
        (V1, {"scope": "blocks"}, '`scope` must be "layer", "block", "network"'),
        (V1, {"routing": "external"}, "`routing` must take its weights from the input, got 'external'"),
        (V1, {"scope": "network", "first_layer": 1}, "`first_layer` must be a block with scope=.* got 'conv_stem'"),
        (V1, {"scope": "network", "first_layer": 15}, "got 'classifier': take one of the layers from 'blocks.0.0' on"),
        (V1, {"conditional_head": True}, "`conditional_head` must be None for a network without a head, got True"),
        (R18, {"conditional_head": False}, "`conditional_head` must be None for a network without a head, got False"),
        (V1, {"conditional_classifier": True, "num_classes": 0},
         "`conditional_classifier` must be None for a network without a classifier, got True"),
        (R18, {"conditional_classifier": True, "features_only": True}, "without a classifier, got True"),
        (V1, {"output_stride": 3}, "`output_stride` must be one of 2, 4, 8, 16, 32 for '.*', got 3"),
        (R18, {"output_stride": 4}, "`output_stride` must be one of 8, 16, 32 for '.*', got 4"),
        (V1, {"output_stride": 4, "aa_layer": "avg"}, "`output_stride` must be 32 where other layers than conv"),
        (R18, {"checkpoint_path": "x.pth"}, "`checkpoint_path` must not be given for 'resnet_cc_18_2e', got 'x.pth': "),
        ("resnet_18", {"checkpoint_path": "x.pth"}, "`checkpoint_path` must not be given for 'resnet_18'"),
        ("resnet_18", {"routing": "softmax"}, "`routing` must not be given for 'resnet_18', which has no experts,"),
        ("resnet_18", {"scope": "layer"}, "`scope` must not be given for .* such as resnet_cc_18_8e"),
        ("resnet_18", {"first_layer": 2}, "`first_layer` must not be given"),
        ("resnet_18", {"conditional_head": False}, "`conditional_head` must not be given"),
        ("resnet_18", {"conditional_classifier": False}, "`conditional_classifier` must not be given"),
        ("resnet_18", {"init": "same_output"}, "`init` must not be given"),
        ("resnet_18", {"expert_spread": 2.5}, "`expert_spread` must not be given"),
        (V1, {"expert_spread": 2.5}, "`expert_spread` must be given with init='same_output' only, got 2.5 with None"),
        (V1, {"init": "same_output", "expert_spread": -1.0}, "`expert_spread` must be a finite number of at least 0"),
    ],
)  # fmt: skip
def test_wrong_arguments(name: str, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_model(name, **options)


def test_an_option_that_timms_network_does_not_have() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'depth'"):
        create_model("mobilenet_v1_025", depth=3)


def test_a_layer_that_cannot_have_experts_is_not_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    family = FAMILIES["resnet"]

    def build(size: str, **options: object) -> nn.Module:
        network = family.build(size, **options)
        network.layer4[1].conv2.register_full_backward_hook(lambda *arguments: None)
        return network

    monkeypatch.setitem(FAMILIES, "resnet", dataclasses.replace(family, build=build))
    message = "can have these options, got 'resnet_cc_18_2e' .'layer4.1.conv2' cannot have experts, it has back"
    with pytest.raises(UsageError, match=message):
        create_model("resnet_cc_18_2e", num_classes=2)


def test_a_block_that_cannot_route_does_not_leave_it_to_its_layers() -> None:
    stages = Scope("block", blocks=lambda name, module: name in ("blocks.3", "blocks.4"))
    with pytest.raises(
        UsageError, match="the layers of 'blocks.3' route by their own inputs: it cannot route them, it"
    ):
        create_model(V1, scope=stages)


def test_classifiers_for_few_classes_start_as_wide_as_those_for_imagenet() -> None:
    for name in ("mobilenet_v1_025", "mobilenet_v1_cc_025_8e", "mobilenet_v2_050", "efficientnet_b0"):
        spreads = [create_model(name, num_classes=number).classifier.weight.std().item() for number in (10, 400, 1000)]
        assert all(each == pytest.approx(1 / 3000**0.5, rel=0.1) for each in spreads)  # uniform in +-1 / sqrt(1000)
    wide, narrow = (create_model("resnet_18", num_classes=number).fc.weight.std().item() for number in (1000, 10))
    assert narrow == pytest.approx(wide, rel=0.1)  # torch's start does not depend on the classes
    assert isinstance(create_model("mobilenet_v1_025", num_classes=0).classifier, nn.Identity)


def test_a_network_without_memory():
    """On the meta device it has the names and shapes that it has elsewhere."""
    name = "mobilenet_v1_cc_012_2e"
    with torch.device("meta"):
        planned = create_model(name, num_classes=3).state_dict()
    made = create_model(name, num_classes=3).state_dict()
    assert all(each.is_meta for each in planned.values())
    assert {key: each.shape for key, each in planned.items()} == {key: each.shape for key, each in made.items()}
