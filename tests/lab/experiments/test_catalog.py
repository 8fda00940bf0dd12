import pytest
import torch
from torch import nn

from condconv.errors import UsageError
from condconv.lab.config import TrainConfig
from condconv.lab.experiments import ladder
from condconv.lab.experiments.branches import BRANCHES, Branches, build, create_branches
from condconv.lab.experiments.catalog import CATALOG, create_experiment
from condconv.lab.experiments.runs import Run
from condconv.lab.train.run import set_up
from condconv.models import create_model, get_model_info
from condconv.nn import ConditionalLayer, ConstantRouting
from condconv.nn.block_routing import routing_functions


@pytest.mark.parametrize(
    "name", [name for name in CATALOG if name not in ("ensembles", "starts", "compact", "methods")]
)
def test_every_arm_is_a_network_of_the_zoo_with_the_figure_of_the_paper(name):
    experiment = create_experiment(name)
    labels = [arm.label for arm in experiment.arms]
    assert len(set(labels)) == len(labels)
    for arm in experiment.arms:
        get_model_info(arm.model)
        assert arm.paper is not None or "control" in arm.label


def test_figure_2_is_six_curves_of_four_widths():
    arms = create_experiment("experts-width").arms
    assert len(arms) == 24
    curves = {arm.curve for arm in arms}
    assert curves == {"static", "2 experts", "4 experts", "8 experts", "16 experts", "32 experts"}
    assert {arm.label: arm.paper for arm in arms}["0.5x, 16 experts"] == 70.0  # Figure 2, read off
    assert {arm.label: arm.paper for arm in arms}["1x, 8 experts"] == 75.2  # not Table 1's 73.7


def test_each_arm_is_compared_with_its_own_static_network():
    figure = create_experiment("experts-width", widths=["025", "050"], experts=[4])
    references = {arm.label: figure.reference(arm) for arm in figure.arms}
    assert references["0.5x, static"] is None
    assert references["0.5x, 4 experts"].label == "0.5x, static"
    table = create_experiment("plug-in")
    arm = next(arm for arm in table.arms if arm.model == "resnet_cc_50_8e")
    assert table.reference(arm).model == "resnet_50"
    ablation = create_experiment("begin-layer")
    assert ablation.reference(ablation.arms[1]).label == "static"


def test_an_ablation_at_another_size_keeps_the_options_and_the_figures_of_the_paper():
    arms = {arm.label: arm for arm in create_experiment("routing", width="050", num_experts=4).arms}
    assert arms.pop("static").model == "mobilenet_v1_050"
    assert {arm.model for arm in arms.values()} == {"mobilenet_v1_cc_050_4e"}
    assert arms["partially shared, one for two blocks"].options == {"scope": "block(every=2)"}
    assert arms["hierarchical"].paper == 60.3  # Table 3
    for name in ("routing", "begin-layer"):
        assert create_experiment(name).note == ""
        assert "0.25x with 32 experts" in create_experiment(name, num_experts=8).note
    network = create_model(arms["all images alike (control)"].model, **arms["all images alike (control)"].options)
    assert {type(each) for each in routing_functions(network).values()} == {ConstantRouting}


def test_ways_to_start_are_of_one_network():
    arms = create_experiment("starts", num_experts=4).arms
    assert [arm.model for arm in arms] == ["mobilenet_v1_025", *5 * ["mobilenet_v1_cc_025_4e"]]
    assert arms[2].options == {"init": "same_output"}
    assert arms[3].options == {"init": "same_output", "expert_spread": 2.5}
    assert arms[5].options == {**arms[4].options, **arms[2].options}


def test_an_option_the_experiment_does_not_have():
    with pytest.raises(
        UsageError, match="`width` must not be given for 'plug-in', which has networks, experts, got '025': leave"
    ):
        create_experiment("plug-in", width="025")
    with pytest.raises(UsageError, match="`name` must be one of experts-width"):
        create_experiment("figure-2")
    for name, option in (
        ("routing", {"width": "0.25"}),
        ("experts-width", {"widths": ["25"]}),
        ("ensembles", {"width": "x"}),
    ):
        with pytest.raises(UsageError, match=r"`width` must be three digits \(percent\), got"):
            create_experiment(name, **option)


def test_branches_are_averaged_or_weighted():
    class Times(nn.Module):
        def __init__(self, factor):
            super().__init__()
            self.factor = factor

        def forward(self, x):
            return self.factor * x

    class Halves(nn.Module):
        def forward(self, x):
            return torch.tensor([[1.0, 0.5]]).expand(len(x), 2)

    x = torch.tensor([[[[2.0]]], [[[4.0]]]])
    branches = [Times(1.0), Times(3.0)]
    torch.testing.assert_close(Branches(branches)(x), 2 * x)  # (1 + 3) / 2
    torch.testing.assert_close(Branches(branches, Halves())(x), 2.5 * x)  # 1 * 1 + 0.5 * 3


@pytest.mark.parametrize(("stages", "weighted", "mixtures"), [("last", False, 1), ("last", True, 1), ("all", True, 5)])
def test_networks_with_branches_have_parameters_of_their_own_in_each(stages, weighted, mixtures):
    torch.manual_seed(0)
    network = create_branches("mobilenet_v1_025", branches=2, stages=stages, weighted=weighted, num_classes=7)
    found = [module for module in network.modules() if isinstance(module, Branches)]
    assert len(found) == mixtures
    assert all((module.routing_fn is not None) == weighted for module in found)
    first, second = (next(branch.parameters()) for branch in found[-1].branches)
    assert not torch.equal(first, second)
    assert network(torch.randn(2, 3, 64, 64)).shape == (2, 7)


def test_experts_start_as_asked_where_there_are_any_and_the_arm_leaves_it_open():
    arms = create_experiment("experts-width", widths=["025"], experts=[4], init="same_output").arms
    assert [dict(arm.options) for arm in arms] == [{}, {"init": "same_output"}]
    # The ladder of `rungs`, whose costs are counted once.
    arms = create_experiment("ensembles", width="100", num_experts=2, init="same_output", size=SMALL).arms
    assert arms[-1].options == {"init": "same_output", "first_layer": 1}
    assert all("init" not in arm.options for arm in arms[:-1])
    assert create_experiment("starts", init="same_output").arms[1].options == {"init": "random"}


def test_a_control_beside_each_network_with_experts_is_the_same_without_routing():
    arms = create_experiment("experts-width", widths=["025"], experts=[2, 4], init="same_output", control=True).arms
    labels = ["static", "2 experts", "2 experts, images alike", "4 experts", "4 experts, images alike"]
    assert [arm.curve for arm in arms] == labels
    assert {arm.against for arm in arms} == {"0.25x, static"}
    assert arms[2].paper is None
    routed, control = (create_model(arm.model, **arm.options).eval() for arm in arms[1:3])
    assert {type(each) for each in routing_functions(control).values()} == {ConstantRouting}
    # Its kernels are as far from those of the experts as the routed network's are before training.
    control.load_state_dict(routed.state_dict(), strict=False)
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(control(x), routed(x))


def test_a_control_that_is_there_anyway():
    with pytest.raises(UsageError, match="`control` must not be given for 'routing', which has one row of it"):
        create_experiment("routing", control=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stages": "first"}, "`stages` must be one of last, all"),
        ({"branches": 0}, "`branches` must be a whole number"),
    ],
)
def test_branches_that_cannot_be(options, message):
    with pytest.raises(UsageError, match=message):
        create_branches("mobilenet_v1_025", **options)


SMALL = ladder.Size(image_size=32, output_stride=32, num_classes=10)


@pytest.fixture(scope="module")
def rungs():
    return ladder.arms("mobilenet_v1_100", 2, SMALL)


def test_rungs_of_the_ladder_cost_what_the_first_does(rungs):
    target = ladder._madds("mobilenet_v1_100", (), SMALL)
    for arm in rungs:
        options = dict(arm.options)
        name = options.pop("base", arm.model)
        madds = arm.members * ladder._madds(name, tuple(sorted(options.items())), SMALL)
        assert madds == pytest.approx(target, rel=0.04)  # widths come in steps of 8 channels
    assert [arm.members for arm in rungs] == [1, 2, 2, 1, 1, 1, 1]
    assert rungs[2].chained
    assert rungs[3].model == BRANCHES


def test_the_last_rung_has_experts_in_every_layer(rungs):
    with torch.device("meta"):
        network = create_model(rungs[-1].model, **rungs[-1].options)
    assert not [name for name, module in network.named_modules() if type(module) is nn.Conv2d]
    assert any(isinstance(module, ConditionalLayer) for module in network.modules())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"widths": ["abc"]}, r"`width` must be three digits \(percent\), got 'abc': write 0.25x as 025"),
        ({"experts": [0]}, "`num_experts` must be a whole number from 1 to 4,096, got 0"),
    ],
)
def test_widths_and_numbers_that_cannot_be(options, message):
    with pytest.raises(UsageError, match=message):
        create_experiment("experts-width", **options)


def test_a_network_that_is_asked_for_twice():
    with pytest.raises(UsageError, match="`experts-width` must have each network once, got '0.25x, 2 experts' 2 times"):
        create_experiment("experts-width", widths=["025"], experts=[2, 2])


def test_a_network_with_experts_is_no_static_one():
    with pytest.raises(UsageError, match="`networks` must be static ones, got 'resnet_cc_50_4e'"):
        create_experiment("plug-in", networks=["resnet_cc_50_4e"])


def test_branches_are_built_for_the_size_of_the_data(tmp_path):
    """Digits have 8 pixels without being asked for, and the stride that the ladder counts with."""
    options = {"base": "mobilenet_v1_025", "branches": 2, "stages": "last", "weighted": False}
    config = TrainConfig(data="digits", model=BRANCHES, model_options=options, out=str(tmp_path), batch_size=64)
    network = set_up(config, build).network
    assert network.conv_stem.stride == (1, 1)


def test_methods_are_settings_of_their_rows(tmp_path):
    experiment = create_experiment("methods", networks=["small_dense"])
    assert [arm.method for arm in experiment.arms[-6:]] == ["condconv", "dyconv", "odconv", "dcd", "weightnet", "se"]
    assert len(experiment.arms) == 12
    run = Run(experiment, experiment.arms[-4], 0, TrainConfig(data="digits", model="-", out="-"), tmp_path)
    (config,) = run.configs()
    assert (config.method, config.model) == ("odconv", "small_dense_cc_100_1e")
    with pytest.raises(UsageError, match="`networks` must be .* small_separable, got 'resnet_18'"):
        create_experiment("methods", networks=["resnet_18"])
