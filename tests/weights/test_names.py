"""Names: wrappers around the source's network and around one's own, layers that are shared, and what has no place."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import condconv
from condconv.errors import UsageError
from condconv.weights import load_state_dict

from .networks import assert_same_logits, assert_unchanged, copy_of, randomise, small


class Wrapper(nn.Module):
    """What holds a network under one name, as data parallelism and feature extractors do."""

    def __init__(self, name: str, inner: nn.Module) -> None:
        super().__init__()
        self.add_module(name, inner)

    def forward(self, x: Tensor) -> Tensor:
        return next(self.children())(x)


@pytest.mark.parametrize("experts", [0, 3])
@pytest.mark.parametrize(
    ("around_model", "around_source"),
    [("model", ""), ("module", "module"), ("model.module", "state"), ("", "network.model"), ("_orig_mod", "")],
)
def test_wrappers_on_either_side(around_model: str, around_source: str, experts: int) -> None:
    source = randomise(small(experts)).double()
    state = {f"{around_source}.{name}".removeprefix("."): value for name, value in source.state_dict().items()}
    model: nn.Module = small(3).double()
    inner = model
    for name in reversed(around_model.split(".") if around_model else []):
        model = torch.compile(model) if name == "_orig_mod" else Wrapper(name, model)
    report = load_state_dict(model, state)
    assert report.matched.startswith("by name")
    assert (f"under '{around_model}.'" in report.matched) == (around_model not in ("", around_source))
    assert len(report.upcycled) == (0 if experts else 5)  # two convolutions in each of two blocks, and the classifier
    assert_same_logits(inner, source, (2, 32))
    assert set(report.copied) <= set(model.state_dict())


def test_skip_takes_names_with_the_wrapper() -> None:
    inner = small(2)
    kept = inner.classifier.weight.clone()
    report = load_state_dict(Wrapper("model", inner), small(num_classes=7).state_dict(), skip="model.classifier.*")
    assert "model.classifier.experts.weight" in report.skipped
    assert torch.equal(inner.classifier.weight, kept)


def test_the_longer_prefix_is_not_taken_without_need() -> None:
    """All names of this network begin with `0.`, and so do the source's."""
    model, source = nn.Sequential(nn.Conv2d(3, 4, 1)), nn.Sequential(nn.Conv2d(3, 4, 1))
    assert load_state_dict(model, source.state_dict()).matched == "by name"
    assert load_state_dict(model, source[0].state_dict()).matched == "by name, under '0.'"
    assert torch.equal(model[0].weight, source[0].weight)


class Twice(nn.Module):
    """One module under two names, and one parameter in two modules."""

    def __init__(self, experts: int = 0) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 3, 3, padding=1)
        self.again = self.first
        self.norm = nn.BatchNorm2d(3)
        self.other = nn.BatchNorm2d(3)
        self.other.weight = self.norm.weight
        if experts:
            papers = {"routing": "sigmoid", "experts": "dense", "init": "random"}
            condconv.convert_(self, experts, example_input=torch.zeros(1, 3, 8, 8), **papers)

    def forward(self, x: Tensor) -> Tensor:
        return self.other(self.again(self.norm(self.first(x)).relu()))


@pytest.mark.parametrize("experts", [0, 3])
@pytest.mark.parametrize("form", ["both names", "the first alone", "the second alone"])
def test_layers_that_are_shared(form: str, experts: int) -> None:
    source, model = randomise(Twice(experts)).double(), Twice(3).double()
    gone = {"both names": (), "the first alone": ("again", "other.weight"), "the second alone": ("first",)}[form]
    state = {name: value for name, value in source.state_dict().items() if not name.startswith(gone)}
    report = load_state_dict(model, state)
    assert report.upcycled == (() if experts else ("first",))
    assert model.again is model.first
    assert model.other.weight is model.norm.weight
    assert_same_logits(model, source, (2, 8))


def test_values_that_differ_for_one_shared_tensor_are_refused() -> None:
    model = Twice(3)
    state = Twice().state_dict()
    before = copy_of(model)
    with pytest.raises(UsageError, match=r"it has several values for first.weight \(first.weight, again.weight\)\. P"):
        load_state_dict(model, state | {"again.weight": state["again.weight"] + 1})
    with pytest.raises(UsageError, match=r"dict: it has several values for norm.weight \(norm.weight, other.weight\)"):
        load_state_dict(model, state | {"other.weight": torch.zeros(4)})
    assert_unchanged(model, before)
    load_state_dict(model, state | {"other.weight": torch.zeros(4)}, skip="norm.weight")
    kept = {
        f"first.{name}" for name in ("routing_fn.fc.weight", "experts.weight", "experts.bias", "routing_fn.fc.bias")
    }
    assert set(load_state_dict(model, state, skip="again.*").skipped) == kept


def test_two_tensors_for_one_place_are_refused() -> None:
    """A port's routing with a hidden layer is not half of itself, and experts stand under one name only."""
    port = nn.Module()
    port.experts = nn.Parameter(torch.randn(4, 8, 8, 3, 3))
    port._routing_fn = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    model = nn.Sequential(condconv.CondConv2d(8, 8, 3, bias=False, num_experts=4))
    message = r"several values for 0.routing_fn.fc.weight \(0._routing_fn.0.weight, 0._routing_fn.2.weight\)"
    with pytest.raises(UsageError, match=message):
        load_state_dict(model, nn.Sequential(port).state_dict())
    twice = model.state_dict() | {"0.experts": torch.zeros(4, 8, 8, 3, 3)}
    with pytest.raises(UsageError, match="the network has no 0.experts. Probably it is another network's"):
        load_state_dict(model, twice)


def test_state_beside_tensors_is_left_alone() -> None:
    class WithMore(nn.Conv2d):
        def get_extra_state(self) -> str:
            return "more"

        def set_extra_state(self, state: str) -> None:
            raise AssertionError

    source, model = nn.Sequential(WithMore(3, 4, 1)), nn.Sequential(WithMore(3, 4, 1))
    load_state_dict(model, source.state_dict())
    assert torch.equal(model[0].weight, source[0].weight)


def test_one_name_in_common_is_no_match_by_name() -> None:
    """Most layers have other names: the one that is called alike stands elsewhere."""
    source = nn.ModuleDict({"first": nn.Conv2d(4, 4, 1), "0": nn.Conv2d(4, 4, 1), "last": nn.Conv2d(4, 4, 1)})
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1))
    assert load_state_dict(model, source.state_dict()).matched == "by kind and order"
    assert torch.equal(model[1].weight, source["0"].weight)
    linear = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4)})  # too little to go by
    with pytest.raises(UsageError, match="the network has no a.weight, a.bias, b.weight and 1 more"):
        load_state_dict(nn.Sequential(condconv.CondLinear(4, 4), condconv.CondLinear(4, 4)), linear.state_dict())


def test_order_is_no_match_where_numbers_or_shapes_differ() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1))
    for layers in (
        (nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 5, 1)),
        (nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)),
        (nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)),
        (nn.BatchNorm2d(4),),
    ):
        names = [f"layer{index}" for index in range(len(layers))]
        source = nn.ModuleDict(dict(zip(names, layers, strict=True)))
        with pytest.raises(UsageError, match="it lacks 0.weight, 0.bias, 1.weight and 5 more"):
            load_state_dict(model, source.state_dict())
