"""timm finds the networks, in this process and from its scripts, with its weights under them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import condconv
from condconv.models import with_timm
from condconv.nn import ConditionalLayer, SoftmaxRouting

timm = pytest.importorskip("timm")

NAMES = (
    "mobilenet_v1_cc_025_4e",
    "mobilenet_v2_cc_100_8e",
    "mnasnet_a1_cc_100_8e",
    "resnet_cc_50_8e",
    "tf_efficientnet_cc_b0_4e",
    "resnet_50",
)


@pytest.fixture(autouse=True, scope="module")
def registered() -> None:
    condconv.register_timm_models()


def test_every_network_is_listed_under_a_prefix_and_timms_own_stay() -> None:
    own = timm.models.model_entrypoint("efficientnet_cc_b0_4e")
    names = condconv.register_timm_models()  # a second time
    assert names == ["condconv_" + name for name in condconv.list_models()]
    assert sorted(timm.list_models("condconv_*")) == sorted(names)
    assert timm.models.model_entrypoint("efficientnet_cc_b0_4e") is own


@pytest.mark.parametrize("name", NAMES)
def test_classes_and_channels(name: str) -> None:
    model = timm.create_model(f"condconv_{name}", num_classes=7, in_chans=1, drop_rate=0.1)
    assert model(torch.randn(2, 1, 64, 64)).shape == (2, 7)
    assert model.pretrained_cfg["architecture"] == f"condconv_{name}"
    first, last = (model.get_submodule(model.pretrained_cfg[key]) for key in ("first_conv", "classifier"))
    assert first.in_channels == 1
    assert getattr(last, "out_features", None) == 7
    data = timm.data.resolve_model_data_config(model)
    assert data["input_size"] == (3, 224, 224)  # timm's own, of which users may want another


@pytest.mark.parametrize("name", NAMES)
def test_features(name: str) -> None:
    model = timm.create_model(f"condconv_{name}", features_only=True, in_chans=1).eval()
    x = torch.randn(2, 1, 64, 64)
    maps = model(x)
    assert [tuple(each.shape) for each in maps] == [
        (2, channels, 64 // reduction, 64 // reduction)
        for channels, reduction in zip(model.feature_info.channels(), model.feature_info.reduction(), strict=True)
    ]
    assert model.feature_info.reduction() == [2, 4, 8, 16, 32]
    assert any(isinstance(module, ConditionalLayer) for module in model.modules()) == ("_cc_" in name)
    if name.startswith("mobilenet_v1"):
        assert len(timm.create_model(f"condconv_{name}", features_only=True, in_chans=1, out_indices=(1, -1))(x)) == 2


def test_features_without_experts_are_refused() -> None:
    with pytest.raises(
        ValueError, match="`out_indices` must reach a layer with experts, got a network that ends with 'layer1.2'"
    ):
        timm.create_model("condconv_resnet_cc_50_8e", features_only=True, out_indices=(0, 1))


def test_our_arguments_pass_through() -> None:
    model = timm.create_model("condconv_mobilenet_v1_cc_025_4e", routing="softmax", first_layer=13)
    assert type(model.blocks[4][0].routing_fn).__name__ == "SoftmaxRouting"
    assert not hasattr(model.blocks[3][5], "routing_fn")


def test_an_init_of_none_is_that_of_timm() -> None:
    """timm leaves out what is None, for the network's own value."""
    assert timm.create_model("condconv_mobilenet_v1_cc_025_4e", drop_rate=None, init=None).drop_rate == 0.0


def test_descriptions_have_the_weights_that_pretrained_starts_from() -> None:
    """With their tags, as timm's own networks have them; a network without weights has a plain one."""
    tags = {name.partition(".")[2] for name in timm.list_pretrained("condconv_resnet_cc_50_8e*")}
    assert tags == {name.partition(".")[2] for name in timm.list_pretrained("resnet50.*")}
    cfg = timm.get_pretrained_cfg("condconv_resnet_cc_50_8e")
    assert (cfg.tag, cfg.hf_hub_id) == ("a1_in1k", "timm/resnet50.a1_in1k")
    assert (cfg.architecture, cfg.first_conv, cfg.classifier) == ("condconv_resnet_cc_50_8e", "conv1", "fc")
    cfg = timm.get_pretrained_cfg("condconv_mobilenet_v1_cc_025_4e")
    assert (cfg.has_weights, cfg.first_conv, cfg.classifier) == (None, "conv_stem", "classifier")
    assert not timm.models.is_model_pretrained("condconv_mobilenet_v1_cc_025_4e")
    assert timm.models.is_model_pretrained("condconv_mobilenet_v1_cc_100_4e")
    assert timm.get_pretrained_cfg("condconv_tf_efficientnet_cc_b0_depth_8e.in1k").input_size == (3, 224, 224)


def test_a_tag_without_pretrained_is_described_as_timm_does() -> None:
    model = timm.create_model("condconv_resnet_cc_50_8e.a2_in1k", num_classes=2)
    assert model.pretrained_cfg["tag"] == "a2_in1k"
    with pytest.raises(RuntimeError, match=r"Invalid pretrained tag \(nope\)"):
        timm.create_model("condconv_resnet_cc_50_8e.nope")


def test_what_scripts_of_timm_ask_for_can_be_created() -> None:
    arguments = timm.models.resolve_model_input_args("condconv_mobilenet_v1_cc_025_4e", in_chans=1)
    assert timm.create_model(arguments.pop("model_name"), **arguments).conv_stem.in_channels == 1


def test_a_description_has_classes_and_channels_as_for_timms_networks() -> None:
    described = {"pretrained_cfg": {"num_classes": 4, "input_size": (1, 64, 64)}}
    for name in ("condconv_mobilenet_v1_cc_025_4e", "mobilenetv2_035"):
        model = timm.create_model(name, **described)
        assert (model.num_classes, model.conv_stem.in_channels) == (4, 1)
    assert timm.create_model("condconv_mobilenet_v1_025", num_classes=5, **described).num_classes == 5


def test_the_module_claims_no_functions_of_timms() -> None:
    from condconv.models import timm_registry

    assert timm_registry.__all__ == ["register_timm_models"]
    assert len(timm_registry.default_cfgs) == len(condconv.list_models())


def test_a_script_of_timms_kind_finds_them(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(
        "import sys, timm\n"
        "from beside import SIZE\n"
        "if __name__ == '__main__':\n"
        "    print(len(sys.argv), timm.create_model(sys.argv[1], num_classes=SIZE).num_classes)\n",
        encoding="utf-8",
    )
    (tmp_path / "beside.py").write_text("SIZE = 5\n", encoding="utf-8")
    command = [sys.executable, "-m", "condconv.models.with_timm"]
    name = "condconv_mobilenet_v1_cc_025_2e"
    done = subprocess.run([*command, str(script), name], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "2 5\n", "")


@pytest.mark.parametrize(("arguments", "got"), [(["missing.py"], "missing.py"), ([], "nothing")])
def test_a_script_that_is_missing(monkeypatch: pytest.MonkeyPatch, arguments: list[str], got: str) -> None:
    monkeypatch.setattr(sys, "argv", ["with_timm", *arguments])
    with pytest.raises(SystemExit, match=f"SCRIPT.py must be a file, got {got}"):
        with_timm.main()


def test_a_script_of_timms_anneals_what_it_trains() -> None:
    """timm's loops know nothing of temperatures: the optimizer's step tells, of networks that timm was given."""
    routing = "softmax(temperature=9, final_temperature=1, annealing_steps=4)"
    trained, other = (timm.create_model("condconv_mobilenet_v1_cc_025_2e", routing=routing) for _ in range(2))
    optimizer = torch.optim.AdamW(trained.parameters(), lr=1e-3)
    for _ in range(2):
        with_timm.anneal_trained(optimizer)
    temperatures = {float(m.temperature) for m in trained.modules() if isinstance(m, SoftmaxRouting)}
    assert temperatures == {5.0}
    assert {float(m.temperature) for m in other.modules() if isinstance(m, SoftmaxRouting)} == {9.0}


@pytest.mark.slow
def test_the_annealing_is_there_while_a_script_runs(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(
        "import timm, torch\n"
        "net = timm.create_model('condconv_mobilenet_v1_cc_025_2e', num_classes=2,\n"
        "    routing='softmax(temperature=9, final_temperature=1, annealing_steps=4)')\n"
        "updates = torch.optim.SGD(net.parameters(), lr=0.1)\n"
        "net(torch.randn(2, 3, 32, 32)).sum().backward()\n"
        "updates.step()\n"
        "print(float(net.blocks[4][0].routing_fn.temperature))\n"
    )
    command = [sys.executable, "-m", "condconv.models.with_timm", str(script)]
    assert subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout.strip() == "7.0"


@pytest.mark.parametrize("name", ["mobilenet_v1_cc_025_4e", pytest.param("resnet_cc_50_8e", marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["hook", "getter"])
def test_features_by_the_other_classes_of_timms(name: str, kind: str) -> None:
    """timm wraps the whole network, whose layers have other names from outside."""
    x = torch.randn(2, 3, 64, 64)
    maps = []
    for options in ({}, {"feature_cls": kind}):
        torch.manual_seed(0)
        features = timm.create_model(f"condconv_{name}", features_only=True, out_indices=(1, 4), **options)
        maps.append([tuple(each.shape) for each in features.eval()(x)])
        assert any(isinstance(module, ConditionalLayer) for module in features.modules())
        assert len(features.feature_info.channels()) == 2
    assert maps[0] == maps[1]


def test_features_from_a_trace_are_refused_for_experts_alone() -> None:
    static = timm.create_model("condconv_mobilenet_v1_025", features_only=True, feature_cls="fx")
    assert len(static.eval()(torch.randn(1, 3, 32, 32))) == 5
    with pytest.raises(ValueError, match='`feature_cls` must not trace .*, got \'fx\': .*; take "hook" or "getter"'):
        timm.create_model("condconv_mobilenet_v1_cc_025_4e", features_only=True, feature_cls="fx")


def test_networks_without_weights_are_described_as_timms_are() -> None:
    without = [name for name in condconv.list_models() if condconv.get_model_info(name).timm_name is None]
    assert without
    for name in without:
        cfg = timm.get_pretrained_cfg(f"condconv_{name}")
        expected = ((3, 32, 32), (8, 8)) if name.startswith("small_") else ((3, 224, 224), (7, 7))
        assert (cfg.input_size, cfg.pool_size) == expected
