"""The experiment on compact experts, and its rule, on results that are made up."""

from __future__ import annotations

import pytest

from condconv.errors import UsageError
from condconv.lab.experiments.catalog import create_experiment
from condconv.lab.experiments.verdicts import Result, Results, about_one_kernel
from condconv.models import create_model

NAME = "small_dense"
NOISE = (-0.1, 0.0, 0.1)


def answer(results: Results) -> str:
    """Return what the rule says of one network."""
    (found,) = about_one_kernel(results)
    return found


def results(**changes: tuple[float, int, int]) -> dict[str, dict[int, Result]]:
    """Return results of three seeds: score, parameters and multiply-adds, with a little noise that arms share."""
    arms = {
        "static": (60.0, 100, 1000),
        "static, 113 % wide": (60.5, 120, 1200),
        "static, 131 % wide": (61.0, 160, 1600),
        "squeeze-and-excitation": (60.8, 110, 1010),
        "deltas": (63.0, 900, 1100),
        "shared, rank 4": (62.4, 115, 1100),
        **{name.replace("_", " "): value for name, value in changes.items()},
    }
    return {
        f"{NAME}, {label}": {
            seed: Result(score + noise * (1 + index / 10), params, madds) for seed, noise in enumerate(NOISE)
        }
        for index, (label, (score, params, madds)) in enumerate(arms.items())
    }


def test_a_shared_kernel_with_most_of_the_gain_is_a_yes() -> None:
    assert answer(results()) == f"{NAME}: yes, by shared, rank 4; shared, rank 4 beyond squeeze-and-excitation."


def test_no_more_is_claimed_than_squeeze_and_excitation_gives() -> None:
    found = answer(results() | {f"{NAME}, squeeze-and-excitation": dict.fromkeys(range(3), Result(63.0, 110, 1010))})
    assert found == f"{NAME}: yes, by shared, rank 4; none beyond squeeze-and-excitation."


@pytest.mark.parametrize(
    ("arm", "said"),
    [
        ((62.4, 121, 1100), "shared, rank 4: 1.21 times the parameters"),
        ((61.9, 115, 1100), "shared, rank 4: +1.9 points of +3.0"),
        ((62.4, 115, 99), None),
    ],
)
def test_the_conditions(arm: tuple[float, int, int], said: str | None) -> None:
    found = answer(results(**{"shared,_rank_4": arm}))
    assert found.startswith(f"{NAME}: yes") if said is None else found == f"{NAME}: no; {said}."


def test_it_must_be_above_static_networks_of_its_costs() -> None:
    wide = {f"{NAME}, static, 113 % wide": dict.fromkeys(range(3), Result(64.0, 120, 1200))}
    assert "not surely above a static network of as many params" in answer(results() | wide)
    costly = results(**{"shared,_rank_4": (62.4, 101, 1600)})
    costly[f"{NAME}, static, 131 % wide"] = dict.fromkeys(range(3), Result(64.0, 160, 1600))
    assert "not surely above a static network of as many madds (-1.6 points)" in answer(costly)


def test_one_seed_is_no_answer() -> None:
    once = {label: {0: each[0]} for label, each in results().items()}
    assert "no answer yet" in answer(once)
    assert "no answer yet" in answer({f"{NAME}, static": {}})
    assert about_one_kernel({}) == []


def test_each_network_has_an_answer() -> None:
    other = {label.replace(NAME, "other"): each for label, each in results(deltas=(60.0, 900, 1100)).items()}
    found = create_experiment("compact", num_experts=2).verdicts(results() | other)
    assert found == [
        f"{NAME}: yes, by shared, rank 4; shared, rank 4 beyond squeeze-and-excitation.",
        "other: no; shared, rank 4: +2.4 points of +0.0.",
    ]


def test_every_arm_can_be_made() -> None:
    arms = create_experiment("compact", num_experts=2).arms
    assert len({arm.label for arm in arms}) == len(arms) == 28
    for arm in arms:
        create_model(arm.model, num_classes=3, **arm.options)
    with pytest.raises(UsageError, match="`networks` must be .* small_separable, got 'resnet_18'"):
        create_experiment("compact", networks=["resnet_18"])
