import math
from typing import Any

import pytest

from condconv.lab.experiments.comparison import (
    NetworkNumbers,
    as_markdown,
    confidence_half_width,
    table,
    verdict,
)


def numbers(name, accuracy, **changes):
    values: dict[str, Any] = {
        "params": 1000,
        "madds": 20_000,
        "train_images_per_second": (100.0,) * len(accuracy),
        "inference_images_per_second": (400.0, 500.0, 600.0),
    }
    return NetworkNumbers(name=name, accuracy=tuple(accuracy), **(values | changes))


def test_confidence_interval_worked_by_hand():
    # differences 1, 2, 3: mean 2, standard deviation 1, t(0.975, 2) = 4.303
    assert confidence_half_width([1.0, 2.0, 3.0]) == pytest.approx(4.303 / math.sqrt(3))
    assert confidence_half_width([1.0]) is None


@pytest.mark.parametrize(
    ("static", "conditional", "said"),
    [
        ((0.90, 0.91, 0.92), (0.93, 0.94, 0.95), "CondConv helps on this data: +3.00 points of accuracy"),
        ((0.93, 0.94, 0.95), (0.90, 0.91, 0.92), "CondConv hurts on this data: -3.00 points of accuracy"),
        ((0.90, 0.91, 0.92), (0.95, 0.90, 0.91), "No difference within the spread on this data: +1.00 points"),
        ((0.90, 0.90, 0.90), (0.90, 0.90, 0.90), "No difference within the spread on this data: +0.00 points"),
        ((0.90,), (0.99,), "Undecided: +9.00 points with one seed"),
    ],
)
def test_the_verdict_follows_the_numbers(static, conditional, said):
    line = verdict(numbers("s", static), numbers("c", conditional), validation_images=1000)
    assert line.startswith(said)


def test_seeds_that_agree_on_less_than_one_image_decide_nothing():
    line = verdict(numbers("s", (0.90, 0.90)), numbers("c", (0.905, 0.905)), validation_images=100)
    assert line == (
        "No difference within the spread on this data: +0.50 points of accuracy, 95 % interval ±1.00 over 2 seeds."
    )


def test_table_worked_by_hand():
    static = numbers("small", (0.90, 0.92))
    conditional = numbers(
        "small_cc",
        (0.95, 0.95),
        params=2_500_000,
        madds=30_000,
        train_images_per_second=(50.0, 50.0),
        inference_images_per_second=(200.0, 250.0, 300.0),
    )
    assert table(static, conditional) == [
        ["network", "params", "MADDs", "accuracy (%)", "training (images/s)", "inference (images/s)"],
        ["small", "1.0k", "20.0k", "91.00 ± 1.41", "100 ± 0", "500 ± 100"],
        ["small_cc", "2.50M", "30.0k", "95.00 ± 0.00", "50 ± 0", "250 ± 50"],
        ["difference", "x 2500.00", "x 1.50", "+4.00 ± 1.41", "x 0.50", "x 0.50"],
    ]


def test_one_seed_has_no_spread():
    assert table(numbers("a", (0.9,)), numbers("b", (0.8,)))[3][3] == "-10.00"


def test_markdown_lines_up():
    assert as_markdown([["name", "n"], ["a", "100"]]).splitlines() == [
        "| name |   n |",
        "| ---- | --: |",
        "| a    | 100 |",
    ]
