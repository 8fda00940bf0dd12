import math
from typing import Any

import pytest

from condconv.lab.experiments.comparison import (
    Comparison,
    NetworkNumbers,
    as_markdown,
    confidence_half_width,
)


def numbers(name, accuracy, **changes):
    values: dict[str, Any] = {
        "params": 1000,
        "madds": 20_000,
        "train_images_per_second": (100.0,) * len(accuracy),
        "inference_images_per_second": (400.0, 500.0, 600.0),
    }
    return NetworkNumbers(name=name, accuracy=tuple(accuracy), **(values | changes))


def compared(control, routed):
    return Comparison(numbers("s", control), numbers("c", control), numbers("r", routed))


def test_confidence_interval_worked_by_hand():
    # differences 1, 2, 3: mean 2, standard deviation 1, t(0.975, 2) = 4.303
    assert confidence_half_width([1.0, 2.0, 3.0]) == pytest.approx(4.303 / math.sqrt(3))
    assert confidence_half_width([1.0]) is None


def test_the_interval_is_of_the_gain_over_the_control_in_points():
    comparison = Comparison(
        numbers("s", (0.1, 0.5, 0.2)), numbers("c", (0.9, 0.9, 0.9)), numbers("r", (0.91, 0.92, 0.93))
    )
    assert comparison.gains == pytest.approx((1.0, 2.0, 3.0))
    low, high = comparison.interval(validation_images=1000)
    assert (low, high) == pytest.approx((2 - 4.303 / math.sqrt(3), 2 + 4.303 / math.sqrt(3)))


@pytest.mark.parametrize(
    ("control", "routed", "said"),
    [
        (
            (0.90, 0.91, 0.92),
            (0.93, 0.94, 0.95),
            "Routing helps on digits: CondConv gains 3.0 points of accuracy over the same experts with one mixture for "
            "all images (95 % interval +2.9 to +3.1, 3 seeds); this does not show the same for your images, for larger "
            "networks, or against a wider static network.",
        ),
        ((0.93, 0.94, 0.95), (0.90, 0.91, 0.92), "Routing hurts on digits: CondConv loses 3.0 points of accuracy over"),
        ((0.90, 0.91, 0.92), (0.95, 0.90, 0.91), "Not shown that routing helps on digits: CondConv has +1.0 points of"),
        ((0.90, 0.90, 0.90), (0.90, 0.90, 0.90), "Not shown that routing helps on digits: CondConv has +0.0 points of"),
        ((0.90,), (0.99,), "Nothing is shown with one seed, in which routing changed the accuracy by +9.0 points"),
    ],
)
def test_the_verdict_follows_the_numbers(control, routed, said):
    assert compared(control, routed).verdict(validation_images=1000, on="digits").startswith(said)


def test_seeds_that_agree_on_less_than_one_image_decide_nothing():
    comparison = compared((0.90, 0.90), (0.905, 0.905))
    assert comparison.interval(validation_images=100) == pytest.approx((-0.5, 1.5))
    assert "can be chance" in comparison.verdict(validation_images=100, on="digits")


def test_table_worked_by_hand():
    static = numbers("small", (0.90, 0.92))
    control = numbers("small, no routing", (0.91, 0.93), params=2_400_000, madds=30_000)
    routed = numbers(
        "small_cc",
        (0.95, 0.95),
        params=2_520_000,
        madds=33_000,
        train_images_per_second=(50.0, 50.0),
        inference_images_per_second=(200.0, 250.0, 300.0),
    )
    # the half width of two values a and b: t(0.975, 1) = 12.706 times half their distance
    assert Comparison(static, control, routed).table() == [
        [
            "network",
            "parameters",
            "multiply-adds",
            "accuracy (%)",
            "training (images/s)",
            "inference (images/s)",
        ],
        ["small", "1.0k", "20.0k", "91.00 ± 12.71", "100", "500"],
        ["small, no routing", "2.40M", "30.0k", "92.00 ± 12.71", "100", "500"],
        ["small_cc", "2.52M", "33.0k", "95.00 ± 0.00", "50", "250"],
        ["routing itself", "x 1.05", "x 1.10", "+3.00 ± 12.71", "x 0.50", "x 0.50"],
    ]


def test_one_seed_has_no_spread():
    assert compared((0.9,), (0.8,)).table()[4][3] == "-10.00"


def test_markdown_lines_up():
    assert as_markdown([["name", "n"], ["a", "100"]]).splitlines() == [
        "| name |   n |",
        "| ---- | --: |",
        "| a    | 100 |",
    ]
