"""Every public function of the room says what is wrong with what it was given, in four parts."""

from __future__ import annotations

import operator
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

import condconv
from condconv import convert as room
from condconv.convert import (
    Scope,
    compress_experts_,
    convert_,
    convert_like_,
    estimate_statistics_,
    exchange_experts_,
    fold_batch_norms_,
    keep_member_,
    make_static_,
    members,
    quantize_experts_,
    select,
    set_budget_,
)
from tests.messages import Row, assert_every_function_has_rows, assert_four_parts, each_row

_LONG: Any = "x" * 100_000
IMAGE = torch.randn(1, 3, 6, 6)
NO_BATCHES: tuple[Any, ...] = (5, [], [_LONG], [[]])


class LooksAtTheKernel(nn.Module):
    """Fails, or computes something else, with a kernel of another shape or dtype."""

    def __init__(self, layer: Any, how: str) -> None:
        super().__init__()
        self.layer, self.how = layer, how
        self.dims = layer.weight.dim()

    def forward(self, x: torch.Tensor) -> Any:
        weight: Any = self.layer.weight
        y = self.layer(x)
        if self.how == "fails" and (weight.dim() != self.dims or weight.dtype != torch.float32):
            raise RuntimeError("\x1b[2Janother kernel\nnow")
        if self.how == "adds":
            return y + weight.numel()
        if self.how == "shape":
            return y.reshape(-1)[: weight.dim()]
        if self.how == "dtype":
            return y.to(torch.float64 if weight.dtype == torch.float32 else torch.float32)
        if self.how == "nan":
            return y if weight.dtype == torch.float32 else y / 0
        return y.argmax(1) * 1.0 if self.how == "sorts" else {"nothing": 5}


def static() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 1), nn.Flatten(), nn.Linear(144, 2))


def conditional(**given: Any) -> nn.Module:
    return nn.Sequential(condconv.CondConv2d(3, 4, 3, num_experts=2), nn.BatchNorm2d(4, **given)).eval()


def converting(model: Any = None, num_experts: Any = 2, **given: Any) -> Any:
    return convert_(static() if model is None else model, num_experts, **{"example_input": IMAGE, **given})


def quantizing(model: Any = None, dtype: Any = "int8", **given: Any) -> Any:
    return quantize_experts_(conditional() if model is None else model, dtype, **{"example_input": IMAGE, **given})


def compressing(model: Any = None, experts: Any = "shared(outputs=1)", **given: Any) -> Any:
    return compress_experts_(conditional() if model is None else model, experts, **{"data": [IMAGE], **given})


def elastic() -> nn.Module:
    layer = condconv.CondConv2d(3, 4, 3, num_experts=2, experts="deltas")
    return nn.Sequential(layer, nn.BatchNorm2d(4)).eval()


def budgeting(**given: Any) -> Any:
    return set_budget_(elastic(), example_input=IMAGE, **given)


def exchanging(experts: Any) -> Any:
    return exchange_experts_(conditional(), {"0": experts})


def repeating(model: Any = None, **given: Any) -> Any:
    return convert_like_(static() if model is None else model, **given)


def freezing(weights: Any, **given: Any) -> Any:
    return make_static_(conditional(), {"0": weights}, **given)


def adapting(how: str) -> LooksAtTheKernel:
    return LooksAtTheKernel(nn.Conv2d(3, 4, 1), how)


def quantized(how: str) -> LooksAtTheKernel:
    return LooksAtTheKernel(condconv.CondConv2d(3, 4, 1, num_experts=2), how)


def in_inference_mode() -> Any:
    with torch.inference_mode():
        return converting()


REPORT: Any = convert_(static(), 2, example_input=IMAGE).to_dict()
ROUTINGS: list[Any] = [
    3,
    "",
    "nope",
    _LONG,
    "sigmoid(1)",
    "sigmoid(x=1)",
    "sigmoid(" * 300,
    {},
    lambda *sizes: {},
]
NO_REPORTS: list[Any] = [None, 5, {}, _LONG, "no-such.json", [], "nul\0"]
MODELS: list[Any] = [
    "net",
    nn.Conv2d(3, 4, 1),
    torch.jit.script(nn.Sequential(nn.Conv2d(3, 4, 1))),
    torch.fx.symbolic_trace(nn.Sequential(nn.Conv2d(3, 4, 1))),
    nn.DataParallel(nn.Conv2d(3, 4, 1)),
    nn.Sequential(torch.jit.script(nn.Conv2d(3, 4, 1))),
    nn.Sequential(condconv.CondConv2d(3, 4, 1)),
    nn.Sequential(nn.ReLU()),
]
NO_LAYERS: list[Any] = [
    5,
    [],
    "",
    [5],
    b"0",
    nn.Conv2d,
    nn.Conv2d(3, 4, 1),
    "nope",
    ["0", "\x1b[2J"],
    _LONG,
    lambda *layer: False,
    select.depth(0.1, 0.2),
]
SCOPES: list[Any] = [None, 4, "", "nope", _LONG, "block(2)", "block(x=1)", "layer(" * 300, "network"]
NO_EXPERTS: tuple[Any, ...] = (5, "few", "shared(", "dense(rank=2)", _LONG)
WITHOUT_OWN = [name for name in REPORT if name not in ("routing", "experts")]
ROWS: dict[str, list[Row]] = {
    "convert_": [
        *(("experts", partial(converting, experts=each)) for each in NO_EXPERTS),
        ("layers", lambda: converting(experts="shared(rank=99)")),
        *(("model", partial(converting, each)) for each in MODELS[:-1]),
        ("layers", partial(converting, MODELS[-1])),
        ("model", in_inference_mode),
        *(("num_experts", partial(converting, num_experts=each)) for each in (0, -1, 2.5, "4", _LONG)),
        *(("method", partial(converting, method=each)) for each in (5, "", "nope", "se(x=1)", _LONG)),
        *(("routing", partial(converting, routing=each)) for each in ROUTINGS),
        ("routing", partial(converting, routing=condconv.nn.SigmoidRouting(3, 2))),
        ("routing", partial(converting, routing=lambda channels, experts, **where: nn.Linear(channels, experts))),
        *(("scope", partial(converting, scope=each)) for each in SCOPES),
        ("scope", partial(converting, routing="hierarchical")),
        *(("every", partial(converting, scope=f"block(every={each})")) for each in ("0", "'2'", "True", "[]")),
        ("every", partial(converting, scope="layer(every=2)")),
        *(("init", partial(converting, init=each)) for each in (None, 5, "zeros", _LONG)),
        *(("expert_spread", partial(converting, expert_spread=each)) for each in (-1, None, _LONG)),
        *(("impl", partial(converting, impl=each)) for each in (None, "nope", _LONG)),
        *(("layers", partial(converting, layers=each)) for each in NO_LAYERS),
        *(("skip", partial(converting, skip=each)) for each in NO_LAYERS[:-1]),
        ("layers", partial(converting, skip="*")),
        *(("blocks", partial(Scope, blocks=each)) for each in NO_LAYERS[:7]),
        ("blocks", lambda: converting(scope=Scope("block", blocks="nope"))),
        ("layers", partial(converting, nn.Sequential(weight_norm(nn.Conv2d(3, 4, 1))))),
        ("classifier", partial(converting, nn.Sequential(nn.Conv2d(3, 4, 1)), classifier=True)),
        *(("optimizer", partial(converting, optimizer=each)) for each in (5, [5], _LONG)),
        ("optimizer", lambda: converting(optimizer=torch.optim.SGD(nn.Linear(1, 1).parameters(), 0.1))),
        ("example_input", lambda: converting(static(), example_input=None)),
        *(("model", partial(converting, adapting(how))) for how in ("fails", "adds", "shape")),
    ],
    "convert_like_": [
        *(("report", partial(repeating, report=each)) for each in NO_REPORTS),
        *(("report", partial(repeating, report={**REPORT, name: None})) for name in WITHOUT_OWN),
        ("routing", lambda: repeating(report={**REPORT, "routing": None})),
        ("experts", lambda: repeating(report={**REPORT, "experts": None})),
        ("experts", lambda: repeating(report={**REPORT, "experts": "shared(rank=_)"})),
        *(("model", partial(repeating, each, report=REPORT)) for each in MODELS[:6]),
        ("model", lambda: repeating(nn.Sequential(nn.ReLU()), report=REPORT)),
        ("model", lambda: repeating(conditional(), report=REPORT)),
        ("optimizer", lambda: repeating(report=REPORT, optimizer=5)),
    ],
    "compress_experts_": [
        *(("model", partial(compressing, each)) for each in ("net", static())),
        *(("experts", partial(compressing, experts=each)) for each in (None, 5, "vgg", "dense", _LONG)),
        *(("experts", partial(compressing, grouped=each)) for each in (5, "vgg", _LONG)),
        *(("data", partial(compressing, data=each)) for each in (5, [], [_LONG], [{"x": IMAGE}])),
        *(("layers", partial(compressing, layers=each)) for each in NO_LAYERS),
        *(("skip", partial(compressing, skip=each)) for each in (*NO_LAYERS, "*")),
        *(("max_error", partial(compressing, max_error=each)) for each in (0, -1, "1", None, float("nan"))),
        *(("repair_epochs", partial(compressing, repair_epochs=each)) for each in (-1, 1.5, "1", None, True)),
        *(("repair_lr", partial(compressing, repair_lr=each)) for each in (0, "1", None)),
        ("data", lambda: compressing(data=None, repair_epochs=1)),
    ],
    "members": [
        *(("model", partial(members, each)) for each in ("net", static())),
        ("experts", lambda: members(conditional(), IMAGE)),
    ],
    "set_budget_": [
        ("num_experts", lambda: set_budget_(elastic(), example_input=IMAGE)),
        *(("num_experts", partial(budgeting, num_experts=each)) for each in (-1, 1.5, "1", True)),
        *(("rank", partial(budgeting, rank=each)) for each in (-1, 1, "1", True)),
        *(("max_bytes", partial(budgeting, max_bytes=each)) for each in (-1, 1, "1")),
        *(("max_madds", partial(budgeting, max_madds=each)) for each in (-1, 1, 1.5)),
        *(("loader", partial(budgeting, num_experts=1, loader=each)) for each in (5, [], [_LONG], [{"x": IMAGE}])),
        ("model", lambda: set_budget_("net", 1)),
    ],
    "keep_member_": [
        *(("number", partial(keep_member_, elastic(), each)) for each in (-1, 3, "1", None, True)),
        *(("model", partial(keep_member_, each, 1)) for each in ("net", static())),
    ],
    "estimate_statistics_": [
        ("model", lambda: estimate_statistics_("net", [IMAGE])),
        *(("loader", partial(estimate_statistics_, elastic(), each)) for each in NO_BATCHES),
    ],
    "exchange_experts_": [
        ("model", lambda: exchange_experts_("net", {})),
        ("stores", lambda: exchange_experts_(conditional(), ["0"])),
        ("stores", lambda: exchange_experts_(conditional(), {_LONG: "dense"})),
        *(("stores", partial(exchanging, each)) for each in ("modulated", "modulated(taps=True)")),
        *(("experts", partial(exchanging, each)) for each in (None, "vgg", _LONG)),
    ],
    "fold_batch_norms_": [
        ("model", lambda: fold_batch_norms_("net")),
        ("model", lambda: fold_batch_norms_(conditional(track_running_stats=False), IMAGE)),
        ("example_input", lambda: fold_batch_norms_(nn.ReLU())),
    ],
    "make_static_": [
        *(("routing_weights", partial(freezing, each)) for each in (5, _LONG, [0.5, 0.5], torch.ones(3))),
        ("routing_weights", lambda: freezing(torch.ones(2).long())),
        ("routing_weights", lambda: freezing(torch.full((2,), torch.nan))),
        ("routing_weights", lambda: freezing(torch.ones(2, device="meta"))),
        ("routing_weights", lambda: make_static_(conditional(), {_LONG: None})),
        ("routing_weights", lambda: make_static_(conditional(), ["0"])),
        ("model", lambda: make_static_("net", {})),
        ("model", lambda: make_static_(quantized("adds"), {"layer": None}, example_input=IMAGE)),
    ],
    "quantize_experts_": [
        *(("model", partial(quantizing, each)) for each in ("net", static(), conditional().half())),
        *(("dtype", partial(quantizing, dtype=each)) for each in (None, 5, "int4", _LONG, torch.int8, ["int8"])),
        *(("layers", partial(quantizing, layers=each)) for each in NO_LAYERS),
        *(("skip", partial(quantizing, skip=each)) for each in (*NO_LAYERS, "*")),
        *(("model", partial(quantizing, quantized(how))) for how in ("fails", "dtype", "nan")),
    ],
    "select": [
        *(("count", partial(select.last_blocks, each)) for each in (0, -1, 1.5, "2", None, _LONG)),
        *(("start", partial(select.depth, each)) for each in (-0.1, 2, "0.5", None, float("nan"))),
        *(("stop", partial(select.depth, 0, each)) for each in (-0.1, 2, "0.5", None, float("nan"))),
        ("start", lambda: select.depth(0.9, 0.1)),
        *(("minimum", partial(select.channels, each)) for each in (0, "8", None)),
        *(("maximum", partial(select.channels, 8, each)) for each in (0, 7, "8")),
        *(("layers", partial(operator.and_, select.convs(), each)) for each in NO_LAYERS[:7]),
    ],
    "Scope": [
        *(("scope", partial(Scope, each)) for each in SCOPES[:5]),
        *(("every", partial(Scope, "block", every)) for every in (0, "2", 1.5, True, _LONG)),
    ],
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
@each_row(ROWS)
def test_messages_have_four_parts(row: Row) -> None:
    assert_four_parts(*row)


def test_every_public_function_has_rows() -> None:
    assert_every_function_has_rows(room, ROWS, {})
