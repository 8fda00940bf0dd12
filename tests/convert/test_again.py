"""Doing a conversion again, in memory, from a dict and from a file; and on the meta device."""

from __future__ import annotations

import functools
import json
import os
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from condconv import CondConv2d, Scope, convert_, convert_like_, select
from condconv.convert import building
from condconv.errors import UsageError
from condconv.nn import ROUTING, RoutingSlot, SigmoidRouting


class Unit(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.pointwise = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.pointwise(torch.relu(self.norm(self.depthwise(x))))


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 10, 3, 2, 1)
        self.units = nn.Sequential(*(Unit(10) for _ in range(4)))
        self.head = nn.Linear(10, 7)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.units(self.stem(x)).mean((2, 3)))


X = torch.randn(2, 3, 14, 10, generator=torch.Generator().manual_seed(3))
WHERE = select.last_blocks(3)
SCOPES: list[Any] = ["layer", "block", "network", Scope("block", every=2)]


def trained(model: nn.Module) -> nn.Module:
    """Return the model with routings that tell inputs apart."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.1)
    return model.eval()


@pytest.mark.parametrize("scope", SCOPES, ids=str)
@pytest.mark.parametrize("form", ["report", "dict", "file"])
def test_a_rebuilt_network_takes_the_converted_state_dict(scope: Any, form: str, tmp_path) -> None:
    model = Network()
    report = convert_(model, 3, layers=WHERE, scope=scope, classifier=True, example_input=X)
    trained(model)
    report.save(tmp_path / "conversion.json")
    given: Any = {
        "report": report,
        "dict": json.loads(json.dumps(report.to_dict())),
        "file": tmp_path / "conversion.json",
    }
    rebuilt = Network().eval()
    again = convert_like_(rebuilt, given[form])
    assert again.conversion == report.conversion
    rows = [{(row.name, row.new, row.routing) for row in each.layers} for each in (again, report)]
    assert rows[0] == rows[1]
    assert rebuilt.load_state_dict(model.state_dict()).missing_keys == []
    assert torch.equal(rebuilt(X), model(X))


@pytest.mark.parametrize("routing", [name for name in ROUTING if name not in ("hierarchical", "external")])
def test_each_kind_of_routing_comes_back(routing: str) -> None:
    model = Network()
    text = {"top_k": "top_k(k=1)", "softmax": "softmax(temperature=5)"}.get(routing, routing)
    report = convert_(model, 3, layers=WHERE, routing=text, scope="block", example_input=X)
    rebuilt = Network().eval()
    convert_like_(rebuilt, report.to_dict())
    rebuilt.load_state_dict(trained(model).state_dict())
    assert torch.equal(rebuilt(X), model(X))


def test_a_chain_comes_back_on_the_meta_device() -> None:
    model = Network()
    report = convert_(model, 3, layers=WHERE, routing="hierarchical", scope="block", example_input=X)
    with torch.device("meta"):
        rebuilt = Network().eval()
        convert_like_(rebuilt, report)
    rebuilt.load_state_dict(trained(model).state_dict(), assign=True)
    assert torch.equal(rebuilt(X), model(X))


@pytest.mark.parametrize("scope", SCOPES, ids=str)
@pytest.mark.parametrize("init", ["same_output", "random"])
def test_values_of_a_model_converted_on_the_meta_device_are_loaded(scope: Any, init: str) -> None:
    model = Network()
    convert_(model, 3, layers=WHERE, scope=scope, init=init, example_input=X)
    with torch.device("meta"):
        empty = Network().eval()
        report = convert_(empty, 3, layers=WHERE, scope=scope, init=init)  # guesses an example
    assert all(parameter.is_meta for parameter in empty.parameters())
    assert report.notes == ("no values yet, on the meta device: load the state dict of a converted network",)
    empty.load_state_dict(trained(model).state_dict(), assign=True)
    assert torch.equal(empty(X), model(X))


@pytest.mark.parametrize("example", [None, X])
def test_buffers_may_have_values_where_parameters_have_none(example: Tensor | None) -> None:
    """As in accelerate's `init_empty_weights`."""
    model, empty = Network(), Network().eval()
    convert_(model, 3, layers=WHERE, scope="block", example_input=X)
    had_values = {name for name, _ in empty.named_buffers()}
    for module in empty.modules():
        for name, parameter in module._parameters.items():
            module._parameters[name] = parameter if parameter is None else nn.Parameter(parameter.to("meta"))
    convert_(empty, 3, layers=WHERE, scope="block", example_input=example)
    assert not any(buffer.is_meta for name, buffer in empty.named_buffers() if name in had_values)
    empty.load_state_dict(trained(model).state_dict(), assign=True)
    assert torch.equal(empty(X), model(X))


def test_the_conversion_is_checked_on_an_example_and_takes_an_optimizer() -> None:
    model, report = Network().eval(), convert_(Network(), 3, layers=WHERE, example_input=X)
    expected = model(X)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    again = convert_like_(model, report, example_input=X, optimizer=optimizer)
    assert again.after is not None
    torch.testing.assert_close(model(X), expected, rtol=1e-4, atol=1e-5)
    held = {id(each) for group in optimizer.param_groups for each in group["params"]}
    assert held == {id(parameter) for parameter in model.parameters()}


def test_conversions_one_after_the_other_are_done_again_in_that_order() -> None:
    model, rebuilt = Network(), Network()
    first = convert_(model, 2, layers="units.0.*", scope="block", example_input=X)
    second = convert_(model, 5, layers="units.3.pointwise", example_input=X)
    for report in (first, second):
        convert_like_(rebuilt, report)
    rebuilt.load_state_dict(model.state_dict())
    assert rebuilt.units[3].pointwise.num_experts == 5


def test_a_routing_that_is_not_text_has_to_be_given_again() -> None:
    make = functools.partial(SigmoidRouting, expert_dropout=0.25)
    model = Network()
    report = convert_(model, 2, layers=WHERE, routing=make, scope="block", example_input=X)
    assert report.to_dict()["routing"] is None
    rebuilt = Network()
    with pytest.raises(UsageError, match="`routing` must be given where that of the report was a class, .* got None"):
        convert_like_(rebuilt, report)
    convert_like_(rebuilt, report, routing=make)
    assert rebuilt.units[1].routing_fn.expert_dropout == 0.25
    assert isinstance(rebuilt.units[1].pointwise.routing_fn, RoutingSlot)


def other(network: nn.Module, name: str, module: nn.Module) -> nn.Module:
    network.set_submodule(name, module)
    return network


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: other(Network(), "units", nn.Sequential(Unit(10))),
            "modules of the report, got none called 'units.1.d",
        ),
        (lambda: other(Network(), "units.2.pointwise", nn.Identity()), "got 'units.2.pointwise': it is a Identity"),
        (
            lambda: other(Network(), "units.2.pointwise", CondConv2d(10, 10, 1)),
            "static layers where the report has some, got 'units.2.pointwise': it is a CondConv2d",
        ),
        (
            lambda: other(Network(), "units.2.pointwise", nn.Conv2d(10, 10, 1, dtype=torch.complex64)),
            "got 'units.2.pointwise': its weight is torch.complex64",
        ),
        (lambda: torch.jit.script(Network()), "`model` must not be scripted"),
    ],
)
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is")
def test_another_network_is_refused_and_left_as_it_was(make, message: str) -> None:
    report = convert_(Network(), 2, layers=WHERE, scope="block", example_input=X)
    model = make()
    names = list(model.state_dict())
    with pytest.raises(UsageError, match=message):
        convert_like_(model, report)
    assert list(model.state_dict()) == names


def changed(**values: Any) -> dict[str, Any]:
    return {**convert_(Network(), 2, layers=WHERE, scope="block", example_input=X).to_dict(), **values}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"format": "condconv conversion 99"},
            "`report` must be a conversion, 'condconv conversion 1', got {.*: give a",
        ),
        ({"num_experts": "2"}, "got one in which `num_experts` must be a whole number from 1 to .*, got '2': give a"),
        ({"num_experts": True}, "`num_experts` must be a whole number from 1 to .*, got True"),
        ({"num_experts": 10_000_000}, "`num_experts` must be a whole number from 1 to 4096, got 10000000"),
        ({"groups": []}, "`groups` must be a list of 1 to"),
        (
            {"groups": [{"leader": None, "layers": ["a", "b", "a"], "last": "a", "channels": None}] * 100_000},
            "`report` must name each layer once, got 'a', 'b' again: give a",
        ),
        (
            {"groups": [{"leader": None, "layers": ["a" * 10**6], "last": "a", "channels": None}]},
            "`model` must have the modules of the report, got none called 'a{39}…a{38}': build it as it was then",
        ),
        ({"expert_spread": None}, "`expert_spread` must be a finite number, got None"),
        ({"groups": {}}, "`groups` must be a list of"),
        ({"groups": [3]}, r"`groups\[0\]` must be a mapping, got 3"),
        (
            {"groups": [{"leader": None, "layers": [], "last": "a", "channels": None}]},
            r"`groups\[0\].layers` must be a list of 1 to",
        ),
        (
            {"groups": [{"leader": "a", "layers": ["b"], "last": "a", "channels": None}]},
            "have a leader with channels or neither in each group",
        ),
        ({"routing": ["sigmoid"]}, "`routing` must be a text, got"),
        ({"routing": "__import__('os').system('true')"}, "routing.? must be"),
        ({"impl": "fastest"}, "impl.? must be"),
    ],
)
def test_what_is_not_a_conversion_is_said(values: dict[str, Any], message: str) -> None:
    model = Network()
    names = list(model.state_dict())
    with pytest.raises(
        UsageError if "routing.?" not in message and "impl.?" not in message else ValueError, match=message
    ):
        convert_like_(model, changed(**values))
    assert list(model.state_dict()) == names
    assert not model.units[1]._forward_pre_hooks


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            None,
            r"`report` must be a file, got .*conversion.json \(No such file or directory\): give a ConversionReport",
        ),
        (b"{", r"`report` must be a JSON file, got .*conversion.json \(Expecting property name"),
        (b"\xff", "`report` must be a JSON file"),
        (b"[" * 100_000, "`report` must be a JSON file"),
        (b"[1, 2]", "`report` must be a conversion, "),
        (
            2**26 + 1,
            r"`report` must be a file, got .*conversion.json \(not a regular file of at most 64 MiB, or of holes\)",
        ),
    ],
)
def test_files_that_are_not_a_conversions_are_said(content: bytes | int | None, message: str, tmp_path) -> None:
    path = tmp_path / "conversion.json"
    if isinstance(content, int):  # of holes, which would take as much memory
        path.write_bytes(b"[")
        os.truncate(path, content)
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=message):
        convert_like_(Network(), path)


@pytest.mark.parametrize("experts", ["dense", "deltas", "modulated"])
def test_a_small_report_cannot_ask_for_too_much_memory(experts: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def make(channels: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(channels, channels, 3), nn.ReLU(), nn.Conv2d(channels, channels, 3))

    report = convert_(make(2), 2, experts=experts, example_input=torch.zeros(1, 2, 5, 5)).to_dict()
    monkeypatch.setattr(building, "_memory", lambda: 2**33)
    model = make(256)
    message = "`num_experts` must leave the experts smaller than the memory of 8 GiB, got 4096"
    with pytest.raises(UsageError, match=message):
        convert_like_(model, {**report, "num_experts": 4096})
    assert all(type(each) is not CondConv2d for each in model.modules())
