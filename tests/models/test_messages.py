"""Every public function of the room says what is wrong with what it was given, in four parts."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from condconv import models
from condconv.models import create_model, get_model_info
from condconv.nn import SigmoidRouting
from tests.messages import Row, assert_every_function_has_rows, assert_four_parts, each_row

pytest.importorskip("timm")

_LONG: Any = "x" * 100_000
anything: Any = object()


def creating(name: Any = "mobilenet_v1_cc_025_2e", **given: Any) -> Any:
    return create_model(name, **given)


def _given(argument: str, value: Any) -> dict[str, Any]:
    return {"scope": f"block(every={value})"} if argument == "every" else {argument: value}


_ARGUMENTS: dict[str, list[Any]] = {
    "name": [None, "", _LONG, "resnet_cc_50_0e", "\x1b[2J"],
    "num_classes": [-1, 2.5, True, _LONG],
    "in_chans": [0, "3"],
    "pretrained": ["yes", None, True],
    "features_only": [1, _LONG],
    "routing": ["external", 3, "", "nope", _LONG, "sigmoid(1)", "sigmoid(x=1)", "a(" * 300, lambda *sizes: {}],
    "method": [3, "", "nope", _LONG, "condconv(x=1)"],
    "experts": [3, "", "nope", _LONG, "dense(1)", "dense(x=1)"],
    "scope": [None, 4, "", "nope", _LONG, "block(2)", "block(x=1)", "a(" * 300],
    "every": [0, -1, "'2'", "True", "[]"],
    "first_layer": [0, 99, 1.5, True, _LONG],
    "conditional_head": [True, "no", _LONG],
    "conditional_classifier": ["yes", 3],
    "init": ["zeros", 5, _LONG],
    "expert_spread": [0.3, _LONG],
    "output_stride": [3, None, _LONG],
    "drop_rate": [-0.1, 1.5, True, _LONG, float("nan")],
    "drop_path_rate": [-1, "0.1", [0.1]],
    "bn_momentum": [7, _LONG],
    "bn_eps": [0, -1e-5, _LONG, float("inf")],
    "checkpoint_path": ["x.pth", _LONG],
}
ROWS: dict[str, list[Row]] = {
    "create_model": [
        *(
            (argument, lambda argument=argument, value=value: creating(**_given(argument, value)))
            for argument, values in _ARGUMENTS.items()
            for value in values
        ),
        ("experts", lambda: creating(method="odconv", experts="dense")),
        ("num_experts", lambda: creating("mobilenet_v1_cc_025_2e", method="se")),
        ("method", lambda: creating("mobilenet_v1_025", method="se")),
        ("expert_spread", lambda: creating(init="same_output", expert_spread=-1)),
        ("every", lambda: creating(scope="layer(every=2)")),
        ("scope", lambda: creating(routing="hierarchical", scope="layer")),
        ("routing", lambda: creating(routing=SigmoidRouting(8, 2))),
        ("routing", lambda: creating(init="same_output", routing=lambda sizes, experts: nn.Linear(sizes, experts))),
        ("temperature", lambda: creating(routing="softmax(temperature=0)")),
        ("scope", lambda: creating("mobilenet_v1_025", scope="layer")),
        ("first_layer", lambda: creating(scope="network", first_layer=1)),
        ("output_stride", lambda: creating(output_stride=4, aa_layer="avg")),
        ("out_indices", lambda: creating("resnet_cc_18_2e", features_only=True, out_indices=(0, 1))),
        *(("se", lambda se=se: creating("small_dense_100", se=se)) for se in (0, 1.5, True, "no", float("nan"))),
        ("output_stride", lambda: creating("small_dense_100", output_stride=8)),
        ("scope", lambda: creating("small_separable_100", scope="layer")),
        ("pretrained_cfg", lambda: creating("mobilenet_v1_cc_033_2e", pretrained_cfg="in1k")),
        ("routing", lambda: creating("tf_efficientnet_cc_b0_4e", pretrained=True, routing="softmax")),
        ("init", lambda: creating("tf_efficientnet_cc_b0_4e", pretrained=True, init="random")),
    ],
    "get_model_info": [("name", lambda: get_model_info(_LONG)), ("name", lambda: get_model_info(anything))],
}
WITHOUT = {"list_models": "takes nothing", "register_timm_models": "takes nothing"}


@each_row(ROWS)
def test_messages_have_four_parts(row: Row) -> None:
    assert_four_parts(*row)


def test_every_public_function_has_rows() -> None:
    assert_every_function_has_rows(models, ROWS, WITHOUT)
