"""Networks by name: costs beside the paper's, shapes at any size, what a name may be."""

from __future__ import annotations

import pytest
import torch

from condconv import Scope, count, create_model, get_model_info, list_models
from condconv.models import MobileNetV1
from condconv.nn import ConditionalLayer


@pytest.mark.parametrize("name", ["mobilenet_v1_100", "mobilenet_v1_cc_100_8e"])
def test_costs_are_within_the_conventions_of_the_paper(name: str) -> None:
    """Table 1 counts as TF's profiler does: 0.1 to 1.4 % apart from convolutions, routing and mixing alone."""
    madds = count(create_model(name)).total.madds
    assert abs(madds / get_model_info(name).paper_madds - 1) < 0.014


@pytest.mark.parametrize(
    ("options", "paper"),
    [
        ({}, 55.7),
        ({"conditional_classifier": False}, 47.6),
        ({"first_block": 12}, 52.5),
        ({"first_block": 4}, 56.0),
        ({"scope": Scope("block", every=2)}, 55.6),
        ({"routing": "hierarchical"}, 55.7),
        ({"routing": "softmax"}, 55.7),
        ({"routing": "hidden"}, 55.9),
    ],
    ids=str,
)
def test_tables_3_and_4(options: dict, paper: float) -> None:
    """CC-MobileNetV1 0.25x with 32 experts and 1001 classes, in millions of multiply-adds, to 0.5 %."""
    madds = count(create_model("mobilenet_v1_cc_025_32e", num_classes=1001, **options)).total.madds
    assert madds / 1e6 == pytest.approx(paper, rel=0.005)


def test_every_listed_name_is_what_it_says() -> None:
    names = list_models()
    assert len(names) == len(set(names)) == 24
    for name in names:
        info = get_model_info(name)
        assert info.name == name
        assert ("_cc_" in name) == (info.num_experts is not None)
        assert info.source
        assert 50 < info.paper_top1 < 80


def test_placement_of_the_paper() -> None:
    model = create_model("mobilenet_v1_cc_025_4e", num_classes=10)
    conditional = [name for name, module in model.named_modules() if isinstance(module, ConditionalLayer)]
    blocks = [f"blocks.{i}.{part}" for i in range(5, 13) for part in ("depthwise", "pointwise")]
    assert sorted(conditional) == sorted([*blocks, "classifier"])
    assert {module.num_experts for module in model.modules() if isinstance(module, ConditionalLayer)} == {4}


def test_same_seed_same_static_layers() -> None:
    torch.manual_seed(3)
    static = create_model("mobilenet_v1_025", num_classes=10)
    torch.manual_seed(3)
    conditional = create_model("mobilenet_v1_cc_025_4e", num_classes=10)
    torch.testing.assert_close(conditional.stem.weight, static.stem.weight, rtol=0, atol=0)
    torch.testing.assert_close(
        conditional.blocks[4].pointwise.weight, static.blocks[4].pointwise.weight, rtol=0, atol=0
    )


def test_preserving_start_is_the_static_network_of_the_seed() -> None:
    models = []
    for name in ("mobilenet_v1_025", "mobilenet_v1_cc_025_4e"):
        torch.manual_seed(3)
        models.append(create_model(name, num_classes=10, init="preserve", output_stride=8).eval())
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(models[1](x), models[0](x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("stride", "size"), [(32, 224), (16, 96), (8, 32), (4, 16), (2, 8), (8, 33), (2, 7)])
def test_output_stride(stride: int, size: int) -> None:
    model = MobileNetV1(0.25, num_classes=7, in_chans=1, output_stride=stride).eval()
    x = torch.randn(2, 1, size, size)
    with torch.no_grad():
        assert model.forward_features(x).shape[-2:] == (-(-size // stride),) * 2
        assert model(x).shape == (2, 7)


def test_no_fold_of_names_into_one_another() -> None:
    for bad in (
        "mobilenet_v1",
        "mobilenet_v1_50",
        "mobilenet_v1_cc_050",
        "mobilenet_v1_050_8e",
        "mobilenet_v1_000",
        "mobilenet_v1_cc_050_0e",
        "resnet50",
        "",
    ):
        with pytest.raises(ValueError, match=r"name must be one of condconv.list_models\(\), such as mobilenet_v1_025"):
            create_model(bad)


def test_other_widths_and_experts() -> None:
    model = create_model("mobilenet_v1_cc_010_3e", num_classes=2)
    assert model.stem.out_channels == 3
    assert get_model_info("mobilenet_v1_cc_010_3e").paper_top1 is None


def test_bad_options() -> None:
    with pytest.raises(ValueError, match="output_stride must be one of 2, 4, 8, 16, 32, got 3"):
        create_model("mobilenet_v1_025", output_stride=3)
    with pytest.raises(ValueError, match="first_block must lie between 1 and 13, got 14"):
        create_model("mobilenet_v1_cc_025_4e", first_block=14)
    with pytest.raises(ValueError, match="width must be positive, got 0"):
        MobileNetV1(0)
    with pytest.raises(TypeError, match="unexpected keyword argument 'depth'"):
        create_model("mobilenet_v1_025", depth=3)
