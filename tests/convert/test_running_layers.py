"""Which layers of a model really run: what selectors take for the deepest, and what the last check sees."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from condconv import CondConv2d, convert_, select
from condconv.errors import UsageError

IMAGES = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(3))


class Basic(nn.Module):
    """A residual block that uses one activation twice."""

    def __init__(self, channels: int, act: nn.Module | None = None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.act = nn.ReLU() if act is None else act
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(x + self.conv2(self.act(self.conv1(x))))


class Truncated(nn.Module):
    """The first stages of a network, as encoders of segmentation networks and extractors of features use them."""

    def __init__(self, stages: int, used: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        act = nn.ReLU()
        self.stages = nn.ModuleList(nn.Sequential(Basic(4, act), Basic(4, act)) for _ in range(stages))
        self.used = used

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for stage in self.stages[: self.used]:
            x = stage(x)
        return x


class Pyramid(nn.Module):
    """A truncated encoder with a head that stands before it, as in PSPNet."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Sequential(nn.Conv2d(8, 6, 1), nn.Conv2d(6, 2, 3, padding=1))
        self.encoder = Truncated(4, used=2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.encoder(x)
        pooled = nn.functional.adaptive_avg_pool2d(x, 2)
        return self.head(torch.cat([x, nn.functional.interpolate(pooled, x.shape[2:])], 1))


class WithHelper(nn.Module):
    """A network with an auxiliary head that runs in training only, as GoogLeNet and Inception have."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(Basic(3), Basic(3))
        self.helper = nn.Sequential(nn.Conv2d(3, 5, 1), nn.Flatten(), nn.Linear(720, 2))
        self.last = nn.Sequential(Basic(3))
        self.classifier = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Any:
        x = self.body(x)
        helped = self.helper(x) if self.training else None
        y = self.classifier(self.last(x).mean((2, 3)))
        return (y, helped) if self.training else y


def names(model: nn.Module, where: select.Selector, **options: Any) -> list[str]:
    report = convert_(model, 2, layers=where, example_input=IMAGES, **options)
    assert report.refused == {}
    return [layer.name for layer in report.layers]


@pytest.mark.parametrize("used", [1, 2, 3])
def test_last_blocks_run(used: int) -> None:
    last = f"stages.{used - 1}.1"
    assert names(Truncated(5, used), select.last_blocks(1)) == [f"{last}.conv1", f"{last}.conv2"]


def test_depth_is_among_the_layers_that_run() -> None:
    assert names(Truncated(5, 2), select.depth(0.99)) == ["stages.1.1.conv2"]
    assert names(Pyramid(), select.depth(0.9)) == ["head.0", "head.1"]
    assert names(WithHelper(), select.depth(0.5) & select.convs()) == ["body.1.conv2", "last.0.conv1", "last.0.conv2"]
    assert names(WithHelper(), select.depth(0.0, 0.2)) == ["body.0.conv1", "body.0.conv2"]


def test_selectors_that_ask_for_runs_leave_out_what_does_not_run() -> None:
    for where in (select.runs_in_eval(), select.depth(0.0), select.last_blocks(9)):
        assert not [name for name in names(WithHelper(), where) if name.startswith("helper")]


def test_a_layer_that_does_not_run_can_be_named_and_is_said_to_be_unchecked() -> None:
    model = WithHelper()
    report = convert_(model, 2, layers=select.convs(), scope="network", example_input=IMAGES)
    assert report.notes == (
        "route by their own inputs, since they do not run on the example: helper.0",
        "not checked, since they do not run on the example in evaluation mode: helper.0",
    )
    model.train()(IMAGES)  # the helper runs between the layers that share a routing


def test_nothing_that_runs_can_share_a_routing() -> None:
    with pytest.raises(UsageError, match="`layers` must select one that runs on the example for scope='network'"):
        convert_(WithHelper(), 2, layers="helper.*", scope="network", example_input=IMAGES)


class Hidden(nn.Module):
    """Calls its layers by other ways than by their names."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3)
        self.second = nn.Conv2d(4, 4, 3)
        self.way = way
        if way == "list":
            self.__dict__["called"] = [self.second]
        elif way == "closure":
            second = self.second
            self.call = lambda x: second(x)
        elif way == "attribute":
            self.__dict__["again"] = self.second

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        if self.way == "list":
            return self.called[0](x)
        if self.way == "closure":
            return self.call(x)
        if self.way == "attribute":
            return self.again(self.second(x))
        return self.second(x) if isinstance(self.second, nn.Conv2d) else x  # by class


@pytest.mark.parametrize("init", ["same_output", "random"])
@pytest.mark.parametrize("way", ["list", "closure", "attribute", "class"])
def test_a_layer_that_is_not_called_by_its_name_is_refused(way: str, init: str) -> None:
    model = Hidden(way)
    with pytest.raises(UsageError, match=r"`model` must call its layers where .* got 'second', .* has been restored"):
        convert_(model, 2, example_input=IMAGES, init=init)
    assert type(model.second) is nn.Conv2d
    report = convert_(model, 2, layers=select.convs(), skip="second", example_input=IMAGES, init=init)
    assert [layer.name for layer in report.layers] == ["first"]


def test_the_model_runs_twice() -> None:
    model, runs = WithHelper(), []
    model.register_forward_pre_hook(lambda *arguments: runs.append(1))
    convert_(model, 2, example_input=IMAGES)
    assert len(runs) == 2


def test_an_example_that_the_model_changes_is_given_as_it_was() -> None:
    model = nn.Sequential(nn.Identity(), nn.Conv2d(3, 4, 3))
    model[0].forward = lambda x: x.mul_(3).add_(1)
    images = IMAGES.clone()
    convert_(model, 2, example_input=images)
    assert torch.equal(images, IMAGES)


def test_layers_inside_a_graph_stay_static() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), torch.fx.symbolic_trace(nn.Sequential(nn.Conv2d(4, 4, 3))))
    report = convert_(model, 2, example_input=IMAGES)
    assert report.refused == {
        "1.0": "it is inside '1', which is traced to a graph: convert the original module, then trace it"
    }
    assert isinstance(model[0], CondConv2d)


class Calling(nn.Module):
    """Calls two layers, the second as a function says."""

    def __init__(self, layer: nn.Module, call: Any) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.layer = layer
        self.call = call

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self.layer, self.stem(x))


@pytest.mark.parametrize(
    ("layer", "call", "reason"),
    [
        (nn.Conv2d(4, 5, 3), lambda layer, x: layer(input=x), "it is called with the keyword input: give its input al"),
        (nn.Conv2d(4, 5, 3), lambda layer, x: layer(x[1]), r"its input [4, 10, 10] has no batch dimension: call it"),
        (nn.Conv1d(10, 5, 3), lambda layer, x: layer(x[0, 1]), r"its input [10, 10] has no batch dimension"),
        (nn.Linear(4, 5), lambda layer, x: layer(x[0].mean((1, 2))), r"its input [4] has no batch dimension"),
    ],
    ids=["keyword", "2d", "1d", "linear"],
)
def test_a_layer_that_is_called_as_its_twin_cannot_be_stays_static(layer: nn.Module, call: Any, reason: str) -> None:
    model = Calling(layer, call)
    report = convert_(model, 2, layers=lambda name, module: True, example_input=IMAGES)
    assert list(report.refused) == ["layer"]
    assert report.refused["layer"].startswith(reason)
    assert isinstance(model.stem, CondConv2d)
