"""Random calls, valid and broken, against loops in fp64: right numbers or a sentence, never an error of torch's.

python -m pytest -m slow tests/ops/test_fuzz.py -s      # 2,000 calls of each operation, with the numbers
"""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from condconv import ops
from tests.ops.breaking import broken
from tests.ops.fuzzing import OPERATIONS, Call, Tally, draw, tried

FEW, MANY = 60, 2000


def fuzz(op: str, calls: int, seed: int) -> Tally:
    chance, tally = random.Random(f"{op} {seed}"), Tally()
    for _ in range(calls):
        call = draw(op, chance)
        tried(call if chance.random() < 0.5 else broken(call, chance), tally)
    return tally


@pytest.mark.parametrize("op", OPERATIONS)
def test_a_few(op: str) -> None:
    tally = fuzz(op, FEW, seed=1)
    assert not tally.wrong, "\n".join(tally.wrong[:5])
    assert tally.ends["computed"] > 0
    assert tally.ends["refused"] > 0


def test_the_check_sees_a_wrong_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """A last place too much is rounding, 0.1 % of one output is not, nor is an error that is not ours."""
    chance = random.Random(3)
    calls = [call for call in (draw("cond_conv2d", chance) for _ in range(60)) if call.arguments["impl"] == "auto"]
    changes: tuple[Callable[[Tensor], Tensor], ...] = (lambda y: y * 1.001, lambda y: y.unflatten(0, (-1, 99)))
    for change, message in zip(changes, ("off by", "RuntimeError"), strict=True):
        monkeypatch.setattr(Call, "run", lambda self, change=change: change(ops.cond_conv2d(**self.arguments)))
        tally = Tally()
        for call in calls:
            if call.arguments["x"].dtype == torch.float64 and len(call.arguments["x"]):
                tried(call, tally)
        assert tally.wrong
        assert all(message in each for each in tally.wrong)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [2])
@pytest.mark.parametrize("op", OPERATIONS)
def test_many(op: str, seed: int) -> None:
    tally = fuzz(op, MANY, seed)
    print(f"\n{op}, seed {seed}: {MANY} calls, {dict(tally.ends)}, {len(tally.wrong)} wrong")
    assert not tally.wrong, f"{len(tally.wrong)} wrong:\n" + "\n".join(tally.wrong[:10])
