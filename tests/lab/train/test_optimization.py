from dataclasses import fields

import pytest
import torch
from torch import nn

from condconv.errors import UsageError
from condconv.lab.config import TrainConfig
from condconv.lab.train.optimization import SCHEDULES, create_optimizer, create_scheduler
from condconv.models import create_model
from condconv.nn import CondConv2d, RoutingFunction
from condconv.nn.conditional import conditional_layers
from tests.lab.samples import settings


def decayed(network: nn.Module, tmp_path, **options) -> set[str]:
    optimizer = create_optimizer(settings(tmp_path, weight_decay=0.1, **options), network)
    decay = {id(each): group["weight_decay"] for group in optimizer.param_groups for each in group["params"]}
    assert set(decay.values()) <= {0.0, 0.1}
    return {name for name, each in network.named_parameters() if decay[id(each)] == 0.1}


def test_kernels_decay_and_biases_and_norms_do_not_unless_asked(tmp_path):
    network = nn.Sequential(CondConv2d(2, 3, 3, num_experts=2), nn.BatchNorm2d(3), nn.Conv2d(3, 1, 1))
    kernels, routers = {"0.experts.weight", "2.weight"}, {"0.routing_fn.fc.weight", "0.routing_fn.fc.bias"}
    every = {name for name, _ in network.named_parameters()}
    assert decayed(network, tmp_path) == kernels | {"0.routing_fn.fc.weight"}
    assert decayed(network, tmp_path, router_decay=False) == kernels
    assert decayed(network, tmp_path, norm_decay=True) == every
    assert decayed(network, tmp_path, norm_decay=True, router_decay=False) == every - routers


@pytest.mark.parametrize(
    ("optimizer", "decay"), [("adamw", 0.05), ("lamb", 0.05), ("SGD", 5e-4), ("lookahead_rmsproptf", 5e-4)]
)
def test_decay_that_is_part_of_the_gradient_is_less_unless_asked(tmp_path, optimizer, decay):
    network = nn.Conv2d(1, 1, 1)
    groups = create_optimizer(settings(tmp_path, optimizer=optimizer), network).param_groups
    assert {group["weight_decay"] for group in groups} == {0.0, decay}
    groups = create_optimizer(settings(tmp_path, optimizer=optimizer, weight_decay=0.1), network).param_groups
    assert {group["weight_decay"] for group in groups} == {0.0, 0.1}


@pytest.mark.parametrize(
    "options", [{}, {"scope": "network"}, {"routing": "hierarchical"}, {"routing": "hidden"}, {"scope": "layer"}]
)
def test_no_router_decays_wherever_it_is(options, tmp_path):
    network = create_model("mobilenet_v1_cc_025_2e", num_classes=2, **options)
    routers = {
        f"{name}.{own}"
        for name, module in network.named_modules()
        if isinstance(module, RoutingFunction)
        for own, _ in module.named_parameters()
    }
    kernels = {name for name, each in network.named_parameters() if each.ndim > 1 and not name.endswith("bias")}
    assert routers
    assert decayed(network, tmp_path, router_decay=False) == kernels - routers


@pytest.mark.parametrize("routing", ["softmax", "sigmoid"])
def test_a_mixture_moves_as_far_as_a_static_kernel_once_the_rate_makes_up_for_its_weights(tmp_path, routing):
    """By 1 / sum(r_e^2) times the rate, with the decay of a static kernel too."""
    static = nn.Conv2d(2, 3, 3, bias=False)
    layer = CondConv2d.from_static(static, num_experts=8, routing=routing, experts="dense", expert_spread=0)
    weights = layer.routing_fn(torch.ones(1, 2, 5, 5))[0].detach()
    network = nn.Sequential(layer)
    scale = 1 / float(weights.square().sum())
    x = torch.randn(1, 2, 5, 5, generator=torch.Generator().manual_seed(0))
    layer.routing_fn.requires_grad_(False)  # stays where it starts, alike for all
    for net, options in ((static, {}), (network, {"expert_lr_scale": scale})):
        optimizer = create_optimizer(settings(tmp_path, optimizer="sgd", lr=0.01, weight_decay=0.3, **options), net)
        for group in optimizer.param_groups:  # as the schedule does
            group["lr"] = 0.01 * group.get("lr_scale", 1.0)
        for _ in range(5):  # momentum and decay gather
            optimizer.zero_grad()
            net(x).square().mean().backward()
            optimizer.step()
    mixture = torch.einsum("e,e...->...", weights, layer.weight.detach())
    torch.testing.assert_close(mixture, static.weight.detach(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"optimizer": "sgd"}, True),
        ({"optimizer": "sgd", "expert_lr_scale": 4.0}, False),
        ({"optimizer": "adamw"}, False),
    ],
)
def test_softmax_routing_at_the_rate_of_everything_else_is_told(tmp_path, caplog, options, said):
    for routing, experts, told in (
        *(("softmax", "dense", said), ("sigmoid", "dense", False), ("softmax", "deltas", False)),
    ):
        caplog.clear()
        network = nn.Sequential(CondConv2d(2, 3, 3, num_experts=4, routing=routing, experts=experts))
        create_optimizer(settings(tmp_path, **options), network)
        assert ("moves 1/4 as far as a static kernel would; --expert-lr-scale 4" in caplog.text) == told


def test_experts_at_another_rate_are_kernels_and_biases_and_no_router(tmp_path):
    network = create_model("mobilenet_v1_cc_025_2e", num_classes=2)
    groups = create_optimizer(settings(tmp_path, expert_lr_scale=4.0, weight_decay=0.2), network).param_groups
    found = {
        id(each): (group.get("lr_scale", 1.0), group["weight_decay"]) for group in groups for each in group["params"]
    }
    for name, layer in conditional_layers(network).items():
        assert found[id(layer.weight)] == (4.0, 0.05), name
        assert layer.bias is None or found[id(layer.bias)] == (4.0, 0.0), name
    apart = {id(own) for layer in conditional_layers(network).values() for own in (layer.weight, layer.bias)}
    assert {scale for key, (scale, _) in found.items() if key not in apart} == {1.0}
    assert len(found) == len(list(network.parameters()))


def test_routers_learn_more_slowly_all_along_the_schedule(tmp_path):
    network = nn.Sequential(CondConv2d(2, 3, 3, num_experts=2), nn.Linear(1, 1))
    config = settings(tmp_path, lr=1.0, epochs=5, warmup_epochs=1, router_lr_scale=0.25)
    optimizer = create_optimizer(config, network)
    scheduler = create_scheduler(config, optimizer, 10)
    routers = {id(each) for each in network[0].routing_fn.parameters()}
    for update in range(50):
        scheduler.step_update(update)
        rates = {
            id(each) in routers: group["lr"] / optimizer.param_groups[0]["lr"]
            for group in optimizer.param_groups
            for each in group["params"]
        }
        assert rates == {False: 1, True: 0.25}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(network.parameters()))
    decays = {id(each): group["weight_decay"] for group in optimizer.param_groups for each in group["params"]}
    weight = network[0].routing_fn.fc.weight
    assert decays[id(weight)] == 4 * decays[id(network[0].weight)]  # at a quarter of the rate it decays as before


def test_timms_options_on_groups_hold_beside_slow_routers(tmp_path):
    network = create_model("mobilenet_v1_cc_025_2e", num_classes=2)

    def scales(**options) -> dict[str, float]:
        config = settings(tmp_path, optimizer_options={"layer_decay": 0.5}, **options)
        groups = create_optimizer(config, network).param_groups
        found = {id(each): group["lr_scale"] for group in groups for each in group["params"]}
        return {name: found[id(each)] for name, each in network.named_parameters()}

    before, after = scales(), scales(router_lr_scale=0.25)
    assert len(set(before.values())) > 2
    assert after == {name: scale * (0.25 if "routing_fn" in name else 1) for name, scale in before.items()}


def test_the_rate_warms_up_and_follows_half_a_cosine(tmp_path):
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1.0)
    scheduler = create_scheduler(settings(tmp_path, lr=1.0, epochs=5, warmup_epochs=1), optimizer, 10)
    rates = [optimizer.param_groups[0]["lr"]]
    for update in range(1, 51):
        scheduler.step_update(update)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates[0] == pytest.approx(0.01)
    assert rates[9] < rates[10] == pytest.approx((1 + torch.tensor(0.2 * torch.pi).cos().item()) / 2)
    assert rates[25] == pytest.approx(0.5)
    assert rates[50] == 0


def test_options_reach_the_optimizer_and_the_schedule(tmp_path):
    """Steps of 2.4 epochs of 10 updates: from update 24 on the rate is 0.97 of the first, from 48 on 0.97^2."""
    config = settings(
        tmp_path,
        optimizer="rmsproptf",
        optimizer_options={"alpha": 0.9, "momentum": 0.8, "eps": 1e-3},
        lr=1.0,
        scheduler="step",
        scheduler_options={"decay_epochs": 2.4, "decay_rate": 0.97},
        warmup_epochs=0,
        epochs=9,
    )
    optimizer = create_optimizer(config, nn.Linear(1, 1))
    group = optimizer.param_groups[0]
    assert (group["alpha"], group["momentum"], group["eps"]) == (0.9, 0.8, 1e-3)
    scheduler = create_scheduler(config, optimizer, 10)
    rates = []
    for update in (1, 23, 24, 47, 48):
        scheduler.step_update(update)
        rates.append(group["lr"])
    assert rates == pytest.approx([1, 1, 0.97, 0.97, 0.97**2])


@pytest.mark.parametrize(
    ("optimizer", "options", "name"),
    [
        ("sgd", {"momentum": 0.8, "claws": 2}, "claws"),
        ("sgd", {"betas": (0.9, 0.95)}, "betas"),  # timm drops this one and the next three without a word
        ("lion", {"eps": 1e-6}, "eps"),
        ("adamw", {"momentum": 0.8}, "momentum"),
        ("lookahead_adamw", {"momentum": 0.8}, "momentum"),
        ("adamw", {"lr": 0.2}, "lr"),
        ("lamb", {"weight_decay": 0.2}, "weight_decay"),
    ],
)
def test_an_option_that_the_optimizer_does_not_use_is_named(tmp_path, optimizer, options, name):
    config = settings(tmp_path, optimizer=optimizer, optimizer_options=options)
    message = (
        f"`optimizer_options` must be arguments that {optimizer} uses, got '{name}': leave it out, or give one of "
    )
    with pytest.raises(UsageError, match=message):
        create_optimizer(config, nn.Linear(1, 1))


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"optimizer": "bnb_adam"}, "`optimizer` must have no prefix but lookahead_, got 'bnb_adam': timm would"),
        ({"optimizer": "sloth"}, "`optimizer` must be a name that timm knows, got 'sloth' "),
        ({"optimizer_options": {"betas": 0.9}}, "`optimizer_options` must be what adamw can be made with here, got "),
        ({"optimizer_options": {"betas": [0.9]}}, "`optimizer_options` must be what adamw can be made with here, got "),
        ({"optimizer": "adahessian"}, "`optimizer` must need first derivatives only, got 'adahessian': take "),
    ],
)
def test_an_optimizer_that_cannot_be_made_is_named(tmp_path, settings_, message):
    with pytest.raises(UsageError, match=message):
        create_optimizer(settings(tmp_path, **settings_), nn.Linear(1, 1))


def rates(config) -> list[float]:
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1.0)
    scheduler = create_scheduler(config, optimizer, 10)
    found = []
    for update in range(100):
        scheduler.step_update(update)
        found.append(optimizer.param_groups[0]["lr"])
    return found


_OTHER = {
    **{"num_epochs": 6, "min_lr": 0.5, "cycle_mul": 2.0, "cycle_decay": 0.5, "cycle_limit": 2, "k_decay": 0.5},
    **{"decay_epochs": 2, "decay_rate": 0.5, "decay_milestones": [3, 5], "cooldown_epochs": 3, "patience_epochs": 3},
    **{"warmup_epochs": 2, "warmup_lr": 0.3, "warmup_prefix": True, "plateau_mode": "min"},
    **{"noise": [0.1, 0.9], "noise_pct": 0.1, "noise_std": 0.2, "noise_seed": 7},
}

# Some count only beside another.
_BESIDE = {
    **{name: {"noise": 0.2} for name in ("noise_pct", "noise_std", "noise_seed")},
    **{name: {"cycle_limit": 2, "num_epochs": 4} for name in ("cycle_mul", "cycle_decay")},
    "cycle_limit": {"num_epochs": 4},
    **{("step", name): {"decay_epochs": 3} for name in ("decay_rate", "warmup_prefix")},
    **{("multistep", name): {"decay_milestones": [4]} for name in ("decay_rate", "warmup_prefix")},
}


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_what_a_schedule_uses_changes_its_rates_and_the_rest_is_refused(tmp_path, schedule):
    for name, value in _OTHER.items():
        beside = _BESIDE.get((schedule, name), _BESIDE.get(name, {}))
        ours, without = (
            settings(tmp_path, lr=1.0, epochs=10, warmup_epochs=1, scheduler=schedule, scheduler_options=options)
            for options in ({**beside, name: value}, beside)
        )
        if name in SCHEDULES[schedule]:
            assert rates(ours) != rates(without), name
        else:
            with pytest.raises(UsageError, match=f"`scheduler_options` must be arguments that {schedule} uses, got "):
                rates(ours)


def test_the_setting_has_the_schedules():
    (scheduler,) = (each for each in fields(TrainConfig) if each.name == "scheduler")
    assert scheduler.metadata["rule"].choices == tuple(SCHEDULES)


def test_a_value_that_a_schedule_cannot_have_is_named(tmp_path):
    stuck = settings(tmp_path, scheduler="step", scheduler_options={"decay_epochs": 0})
    with pytest.raises(
        UsageError, match=r"`scheduler_options` must be what the schedule step can .*'decay_epochs': 0}"
    ):
        rates(stuck)
