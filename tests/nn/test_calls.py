import pytest
import torch
from torch import nn

from condconv import CondConv2d, convert_
from condconv.convert import Scope
from condconv.errors import UsageError
from condconv.nn import HiddenRouting, SoftmaxRouting
from condconv.nn.calls import parse_call


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("sigmoid", ("sigmoid", {})),
        (" softmax( temperature = 30.5 ) ", ("softmax", {"temperature": 30.5})),
        ("top_k(k=2, renormalize=False)", ("top_k", {"k": 2, "renormalize": False})),
        ("hidden()", ("hidden", {})),
        ("hidden(hidden_ratio=1/4)", ("hidden", {"hidden_ratio": 0.25})),
    ],
)
def test_names_with_and_without_options(text, expected):
    assert parse_call(text, "routing") == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "soft max",
        "softmax(30)",
        "softmax(**x)",
        "softmax(t=open('f'))",
        "a.b(c=1)",
        "f(x=1/0)",
        "f(x='a'/2)",
        "f(x=1e308/1e-308/2)",
        "softmax(t=1, t=2)",
        "1",
        "f(x=1",
        "f(x=\0)",
        "f(x=" + "[" * 500,
        "f(x=" + "-" * 90_000 + "1)",
    ],
)
def test_anything_else_is_refused_and_not_run(text):
    with pytest.raises(ValueError, match="`routing` must be a name or name"):
        parse_call(text, "routing")


def test_a_layer_takes_options_of_its_routing_as_text():
    softmax = CondConv2d(8, 4, 1, num_experts=3, routing="softmax(temperature=30.0)").routing_fn
    assert isinstance(softmax, SoftmaxRouting)
    assert float(softmax.temperature) == 30.0
    hidden = CondConv2d(8, 4, 1, num_experts=3, routing="hidden(hidden_ratio=0.5)").routing_fn
    assert isinstance(hidden, HiddenRouting)
    assert next(hidden.parameters()).shape[0] == 4  # half of 8 channels


def test_an_option_the_routing_does_not_have():
    with pytest.raises(UsageError, match="`routing` must have options of .* only, got 'temperature': it has"):
        CondConv2d(8, 4, 1, num_experts=3, routing="sigmoid(temperature=2)")


def test_scope_as_text():
    assert Scope.parse("block(every=2)") == Scope("block", every=2)
    assert Scope.parse("network") == Scope("network")
    with pytest.raises(ValueError, match="`scope` must have no option but every"):
        Scope.parse("block(each=2)")
    with pytest.raises(ValueError, match="`every` must be a positive number of blocks"):
        Scope.parse("block(every=0)")


def test_conversion_takes_both_as_text():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
    before = model(torch.ones(1, 3, 9, 9))
    convert_(model, 3, routing="softmax(temperature=7.0)", scope="layer", example_input=torch.ones(1, 3, 9, 9))
    assert float(model[0].routing_fn.temperature) == 7.0
    torch.testing.assert_close(model(torch.ones(1, 3, 9, 9)), before)
    with pytest.raises(ValueError, match='`scope` must be "block" for hierarchical'):
        convert_(nn.Sequential(nn.Conv2d(3, 4, 3)), 3, routing="hierarchical()")
