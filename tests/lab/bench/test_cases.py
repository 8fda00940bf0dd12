import pytest
import torch

from condconv.errors import MissingExtraError, UsageError
from condconv.lab.bench import cases
from condconv.lab.bench.cases import LAYERS, LayerCase, NetworkCase, layers_of
from condconv.lab.bench.contender import Conditions
from condconv.lab.bench.tasks import BATCHES, full_tasks, networks_of, quick_tasks

FIXED = [
    "1x1 672->112 @14",
    "1x1 192->1152 @7",
    "1x1 1152->192 @7",
    "1x1 1152->320 @7",
    "1x1 64->256 @56",
    "depthwise 5x5 672 @14",
    "depthwise 3x3 1152 @7",
    "depthwise 3x3 144 @56",
    "3x3 64->64 @56",
    "3x3 256->256 @14",
    "3x3 512->512 @7",
]
B0 = "tf_efficientnet_cc_b0_8e"


def test_the_quick_list():
    tasks = quick_tasks(Conditions(dtype="bf16"))
    rows = [(task.case.name, task.batch, task.conditions.mode) for task in tasks]
    assert rows == [
        *((name, batch, "inference") for name in [*FIXED, B0] for batch in (1, 8, 32)),
        (B0, 16, "training"),
    ]
    assert {task.conditions.dtype for task in tasks} == {"bf16"}


def test_everything_is_measured_unless_patterns_choose():
    both = [Conditions("inference"), Conditions("training")]
    tasks = full_tasks(both, None, None, None)
    # 11 layers and 5 networks, two modes, four batches, and the training step with batch 16.
    assert len(tasks) == 16 * 2 * len(BATCHES) + 1
    assert (tasks[-1].case.name, tasks[-1].batch, tasks[-1].conditions.mode) == (B0, 16, "training")
    chosen = full_tasks(both[:1], [3], "*e 3x3 1152*", None)
    assert [(task.case.name, task.batch) for task in chosen] == [("depthwise 3x3 1152 @7", 3)]
    assert {task.case.name for task in full_tasks(both, [1], None, "*b0_?e")} == {"tf_efficientnet_cc_b0_4e", B0}
    assert len(full_tasks(both[:1], [1], "*192*", "mobilenet*")) == 2 + 2


def test_a_pattern_that_fits_nothing_is_refused():
    with pytest.raises(UsageError, match="`--layers` must match listed layers, got 'x9' for none: near names are 1x1"):
        full_tasks([Conditions()], None, "x9", None)
    with pytest.raises(UsageError, match="`--networks` must match listed networks, got 'vgg' for none: near names"):
        full_tasks([Conditions()], None, None, "vgg")


def test_all_layers_are_those_of_the_networks_too(monkeypatch):
    monkeypatch.setattr("condconv.lab.bench.tasks.NETWORKS", (B0, "resnet_cc_50_8e"))  # two of five
    names = [task.case.name for task in full_tasks([Conditions()], [1], "all", None)]
    assert names[:11] == FIXED
    assert len(names) == len(set(names))
    assert "depthwise 5x5 672 @14 /2" in names
    assert "1x1 672->112 @14" in names
    assert "3x3 512->512 @14 /2" in names  # the first block of ResNet's last stage


def test_layers_of_a_network_are_its_convolutions_with_experts():
    # MobileNetV1 0.25: the last 8 of 13 blocks have experts; from 64 channels on 28 pixels to 256 on 7.
    names = [layer.name for layer in layers_of("mobilenet_v1_cc_025_4e")]
    assert names[:3] == ["depthwise 3x3 64 @28 /2 4e", "1x1 64->128 @14 4e", "depthwise 3x3 128 @14 4e"]
    assert names[-1] == "1x1 256->256 @7 4e"


def test_bounds_and_bytes():
    assert LayerCase(1, 192, 1152, 7).bound == (49 + 8) / 49
    assert LayerCase(5, 672, 672, 14, groups=672, stride=2, experts=4).bound == (49 + 4) / 49
    assert LayerCase(1, 192, 1152, 7).expert_bytes == 4 * 8 * 192 * 1152
    assert LayerCase(3, 144, 144, 56, groups=144).expert_bytes == 4 * 8 * 144 * 9
    # 159.8M over 149.5M multiply-adds.
    assert NetworkCase("mobilenet_v1_cc_050_8e").bound == pytest.approx(1.069, abs=1e-3)


@pytest.mark.parametrize(
    "case", [LayerCase(3, 4, 6, 5), LayerCase(3, 4, 4, 5, groups=4, stride=2, experts=2), LayerCase(1, 4, 6, 5)]
)
def test_timm_computes_what_ours_does_and_the_twin_has_its_shape(case):
    trio = case.make(3)
    ours = trio.ours(*trio.inputs)
    torch.testing.assert_close(trio.timm(*trio.inputs), ours)
    assert trio.static(trio.inputs[0]).shape == ours.shape


def test_without_timm_there_is_none(monkeypatch):
    def missing(module, extra):
        raise MissingExtraError(module)

    monkeypatch.setattr(cases, "require_extra", missing)
    assert LAYERS[0].make(1).timm is None
    assert NetworkCase("mobilenet_v1_cc_025_2e").make(1).timm is None


@pytest.mark.parametrize("pattern", ["vgg", "x" * 100_000, "\x1b[2J"])
@pytest.mark.parametrize("argument", ["layers", "networks"])
def test_patterns_of_a_benchmark_that_fit_nothing(argument: str, pattern: str) -> None:
    message = r"`--(layers|networks)` must match listed .+, got '.{1,80} for none: near names are .+"
    chosen = {"layers": None, "networks": None, argument: pattern}
    with pytest.raises(UsageError, match=f"^{message}$"):
        full_tasks([Conditions()], None, **chosen)
    with pytest.raises(UsageError, match=f"^{message}$"):
        networks_of(pattern)


def test_networks_with_other_experts() -> None:
    (case,) = networks_of("*b0_8e", "shared(rank=8)")
    assert case.name == "tf_efficientnet_cc_b0_8e, shared(rank=8)"
    dense = NetworkCase("tf_efficientnet_cc_b0_8e")
    assert case.bound < 1.1
    assert dense.expert_bytes > 4 * case.expert_bytes
    assert {task.case.name for task in full_tasks([Conditions()], [1], None, "*b0_8e", "shared(rank=8)")} == {case.name}
    trio = NetworkCase("mobilenet_v1_cc_025_2e", "shared").make(1)
    assert trio.timm is None
    assert trio.ours(*trio.inputs).shape == (1, 1000)
