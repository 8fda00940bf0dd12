"""Every public function of the room says what is wrong with what it was given, in four parts."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

import condconv
from condconv import weights
from condconv.weights import load_pretrained, load_state_dict, to_timm_state_dict
from tests.messages import Row, assert_every_function_has_rows, assert_four_parts, each_row

from .networks import small

_LONG = "x" * 100_000
anything: Any = object()


def loading(**given: Any) -> Any:
    return load_state_dict(**{"model": small(2), "state": small().state_dict(), **given})


def reading(path: Any, **given: Any) -> Any:
    return load_pretrained(**{"model": small(2), "path": path, **given})


ROWS: dict[str, list[Row]] = {
    "load_pretrained": [
        ("model", lambda: reading("x.pth", model=anything)),
        ("path", lambda: reading("x.pth")),
        ("path", lambda: reading(_LONG)),
        ("path", lambda: reading("\x1b[2J")),
        ("path", lambda: reading(".")),
        ("path", lambda: reading(None)),
        ("path", lambda: reading(_LONG.encode())),
        ("path", lambda: reading({"a": 1})),
        ("path", lambda: reading(["x.pth", 3])),
        ("path", lambda: reading([])),
        ("skip", lambda: reading("x.pth", skip=7)),
        ("skip", lambda: reading("x.pth", skip=["a", None])),
        ("averaged", lambda: reading("x.pth", averaged="no")),
        ("expert_spread", lambda: reading("x.pth", expert_spread=_LONG)),
    ],
    "load_state_dict": [
        ("model", lambda: loading(model=None)),
        ("model", lambda: loading(model=nn.Sequential(nn.LazyConv2d(3, 1)))),
        ("model", lambda: loading(model=small(2).to("meta"))),
        ("state", lambda: loading(state=[_LONG])),
        ("state", lambda: loading(state="x.pth")),
        ("state", lambda: loading(state=small())),
        ("path", lambda: loading(state={})),
        ("path", lambda: loading(state={"a": np.zeros(3)})),
        ("path", lambda: loading(state={_LONG: 3, "\x1b": 4})),
        ("path", lambda: loading(state={"a\n": torch.zeros(3)})),
        ("path", lambda: loading(state={"weight": torch.zeros(3)})),
        ("path", lambda: loading(state={"one": {"a": torch.zeros(3)}, "two": {"a": torch.zeros(3)}})),
        ("path", lambda: loading(state=small().to("meta").state_dict())),
        ("path", lambda: loading(state=small(4).state_dict())),
        ("skip", lambda: loading(skip="nothing.*")),
        ("skip", lambda: loading(skip=_LONG)),
        ("skip", lambda: loading(skip=3)),
        ("averaged", lambda: loading(averaged=1)),
        ("averaged", lambda: loading(state={"ema": small().state_dict()}, averaged=False)),
        ("expert_spread", lambda: loading(expert_spread=-1)),
        ("expert_spread", lambda: loading(expert_spread=np.arange(10_000))),
    ],
    "to_timm_state_dict": [
        ("model", lambda: to_timm_state_dict(anything)),
        ("model", lambda: to_timm_state_dict(small())),
        ("model", lambda: to_timm_state_dict(small(2, routing="softmax"))),
        ("model", lambda: to_timm_state_dict(nn.Sequential(condconv.CondConv2d(3, 4, 1, num_experts=2)))),
    ],
}


@each_row(ROWS)
def test_messages_have_four_parts(row: Row) -> None:
    assert_four_parts(*row)


def test_every_public_function_has_rows() -> None:
    assert_every_function_has_rows(weights, ROWS, {})
