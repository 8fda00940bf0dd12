"""What `train` prints, saves and warns of about the routing of a network."""

import logging
import re

import pytest
import torch
from torch import Tensor, nn

import condconv
from condconv.analysis import RoutingRecorder, summarize
from condconv.errors import TrainingError
from condconv.lab.data import open_data
from condconv.lab.data.loading import create_loader
from condconv.lab.saved import inspect_checkpoint, load_checkpoint
from condconv.lab.saved.rebuild import load_trained
from condconv.lab.train import train, watching
from condconv.nn import CondConv2d, SigmoidRouting, SoftmaxRouting
from tests.lab.samples import StopAt, build, settings

LINE = re.compile(
    r"epoch 1/1: train loss \d\.\d+, top-1 \d+\.\d\d %; routing: weights vary by \d+ % over images, kernels "
    r"by \d+\.\d %, \d\.\d of 4 experts in use, their similarity -?\d\.\d\d \(1 = identical\)"
)

NUMBERS = ("routing_variation", "kernel_variation", "experts_in_use", "expert_similarity")
STANDARDIZE = "--model-option 'routing=sigmoid(standardize=True)'"


class Same(nn.Module):
    """Gives all images the same weights, multiplied by `factor` in evaluation."""

    def __init__(self, channels: int, experts: int, factor: float = 1.0) -> None:
        super().__init__()
        self.num_experts, self.factor = experts, factor

    def forward(self, x: Tensor) -> Tensor:
        return torch.full((len(x), self.num_experts), 0.5 if self.training else 0.5 * self.factor)


class Frozen(SigmoidRouting):
    """A router that starts with the same weights for all images."""

    def __init__(self, in_channels: int, num_experts: int) -> None:
        super().__init__(in_channels, num_experts)
        self.start_constant_()


def routed(routing="sigmoid", first=None, experts="dense", init=None):
    """Builds a network with one layer of four experts."""

    def make(config, num_classes, in_chans):
        conv = CondConv2d(in_chans, 8, 3, num_experts=4, routing=routing, experts=experts)
        if init is not None:
            init(conv)
        layers = (conv, nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, num_classes))
        return nn.Sequential(first or nn.Identity(), *layers)

    return make


def copied(conv: CondConv2d) -> None:
    with torch.no_grad():
        conv.weight.copy_(conv.weight[:1].clone())


def copies(conv: CondConv2d) -> None:
    copied(conv)
    with torch.no_grad():
        conv.routing_fn.fc.weight.mul_(10)


def stuck(conv: CondConv2d) -> None:
    nn.init.constant_(conv.routing_fn.fc.bias, 9.0)


def one_expert(conv: CondConv2d) -> None:
    with torch.no_grad():
        conv.routing_fn.fc.bias.copy_(torch.tensor([9.0, -9.0, -9.0, -9.0]))


@pytest.fixture
def at_once(monkeypatch):
    """Routing is judged after the first epoch."""
    monkeypatch.setattr(watching, "FEWEST_EPOCHS", 1)
    monkeypatch.setattr(watching, "FEWEST_UPDATES", 0)


def warnings(caplog):
    return [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]


def test_each_epoch_says_what_routing_learned_and_saves_it(tmp_path, capsys):
    result = train(settings(tmp_path, epochs=1), build=routed())
    assert LINE.fullmatch(capsys.readouterr().err.strip())
    (saved,) = load_checkpoint(result.last).metrics
    assert saved == result.metrics[0]
    header, row = ((tmp_path / "metrics.csv").read_text().splitlines()[index].split(",")[-5:] for index in (0, 1))
    assert header == [*NUMBERS, "routing_state"]
    assert row == [*(str(getattr(saved, name)) for name in NUMBERS), watching.STARTING]


@pytest.mark.parametrize("average", [None, 0.5])
def test_the_numbers_are_those_of_the_network_that_is_scored(tmp_path, average):
    config = settings(tmp_path, epochs=1, ema_decay=average)
    result = train(config, build=routed(), progress=False)
    network = load_trained(result.best, build=routed())[1]
    with RoutingRecorder(network) as recorder, torch.inference_mode():
        for images, targets in create_loader(open_data(config).val, 50):
            network(images)
            recorder.update(targets)
    found = summarize(recorder.report())
    (last,) = result.metrics
    expected = (found.variation, found.kernel_variation, found.experts_in_use, found.similarity)
    assert tuple(getattr(last, name) for name in NUMBERS) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("make", [build, routed("constant")])
def test_networks_without_input_dependent_routing_say_nothing(tmp_path, capsys, caplog, at_once, make):
    result = train(settings(tmp_path, epochs=1), build=make)
    assert "routing" not in capsys.readouterr().err
    assert warnings(caplog) == []
    (last,) = result.metrics
    assert [getattr(last, name) for name in (*NUMBERS, "routing_state")] == [None] * 5


def test_images_of_the_whole_pass_are_watched_and_not_many(monkeypatch):
    network = nn.Sequential(CondConv2d(1, 2, 1, num_experts=2))
    monkeypatch.setattr(watching, "IMAGES", 12)
    watch = watching.RoutingWatch(network, images=40)  # a third of them, rounded up to every fourth batch
    seen = []
    network[0].routing_fn.register_forward_hook(lambda routing_fn, *call: seen.append(len(routing_fn._forward_hooks)))
    for images, _ in watch.over((torch.rand(4, 1, 2, 2), torch.zeros(4).long()) for _ in range(10)):
        network(images)
    assert seen == [2, 1, 1, 1, 2, 1, 1, 1, 2, 1]
    assert int(watch._recorder.report().routings[0].examples) == 12


@pytest.mark.parametrize(
    ("make", "changes", "finding", "remedy"),
    [
        (routed(Same), {}, "their routing weights hardly differ", "--router-lr-scale 10"),
        (routed(Frozen), {}, "their routing weights hardly differ", "--method deltas"),
        (routed(Frozen, experts="shared"), {}, "their routing weights hardly differ", STANDARDIZE),
        (routed(Frozen, init=copied), {}, "their routing weights hardly differ", "--method deltas"),
        (routed(init=stuck), {"router_lr_scale": 5.0}, "weights are stuck near 0 and 1", "--router-lr-scale 0.5"),
        (routed(init=one_expert), {}, "all the weight", "--expert-dropout 0.2, or --router-lr-scale 0.1"),
        (routed(init=copies), {}, "nearly copies of each other", "--method deltas"),
    ],
)
def test_each_way_to_fail_is_one_warning_with_its_remedy(tmp_path, caplog, at_once, make, changes, finding, remedy):
    config = settings(tmp_path, epochs=1, lr=1e-9, warmup_epochs=0, **changes)
    result = train(config, build=make, progress=False)
    (warning,) = warnings(caplog)
    assert result.routing_note == warning
    assert warning.startswith("after epoch 1 all images get ")
    assert warning.endswith(f"{finding}: train again in another --out with {remedy}")


def test_a_warning_comes_once_in_a_run_and_in_its_continuation(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(watching, "FEWEST_UPDATES", 0)
    config = settings(tmp_path, epochs=6)
    with pytest.raises(RuntimeError, match="fifth"):
        train(config, build=routed(Same, StopAt(4 * 7 + 1, RuntimeError("fifth"))), progress=False)
    assert [each[:14] for each in warnings(caplog)] == ["after epoch 3 "]
    result = train(config, build=routed(Same), progress=False)
    assert len(warnings(caplog)) == 1
    assert result.routing_note.startswith("after epoch 6 all images get almost the same kernels")
    states = [each.routing_state for each in result.metrics]
    assert states == ["starting", "starting", *["same weights"] * 4]


def test_few_updates_are_not_judged(tmp_path, caplog):
    result = train(settings(tmp_path, epochs=4), build=routed(Same), progress=False)
    assert {each.routing_state for each in result.metrics} == {"starting"}
    assert warnings(caplog) == []
    assert result.routing_note == (
        "routing was not judged: that takes 3 epochs and 200 updates after warm-up, the run had 4 and 21: give a "
        "smaller --batch-size or more --epochs"
    )
    again = train(settings(tmp_path, epochs=4), build=routed(Same), progress=False)  # it is finished
    assert again.routing_note == result.routing_note


def test_nothing_is_noted_of_routing_that_recovers_or_does_not_exist(tmp_path, caplog, at_once):
    class Late(Same):
        """Gives all images the same weights until the eighth batch, the first of the second epoch."""

        batches = 0

        def forward(self, x: Tensor) -> Tensor:
            self.batches += self.training
            weights = super().forward(x)
            each = torch.arange(weights.numel()).view_as(weights)
            return weights if self.batches < 8 else weights * (1 + each.remainder(7))

    result = train(settings(tmp_path / "late", epochs=2, warmup_epochs=0), build=routed(Late), progress=False)
    assert [each.routing_state for each in result.metrics] == ["same weights", "varied"]
    assert (len(warnings(caplog)), result.routing_note) == (1, None)
    assert train(settings(tmp_path / "static", epochs=1), build=build, progress=False).routing_note is None


def test_weights_that_annealing_keeps_alike_are_not_judged(tmp_path, at_once):
    def annealed(channels, experts):
        return SoftmaxRouting(channels, experts, temperature=1e6, final_temperature=1e5, annealing_steps=10)

    result = train(settings(tmp_path, epochs=2, warmup_epochs=0), build=routed(annealed), progress=False)
    assert [each.routing_state for each in result.metrics] == ["starting", "same weights"]


def test_weights_that_are_not_numbers_end_the_run_with_one_sentence(tmp_path):
    broken = Same(1, 4, factor=torch.nan)
    with pytest.raises(
        TrainingError, match=r"^the loss became nan in epoch 1, .*: train in another --out with a lower"
    ):
        train(settings(tmp_path, epochs=1), build=routed(broken), progress=False)


def test_a_network_whose_routing_does_not_belong_to_images_is_trained_unwatched(tmp_path, caplog):
    class Windows(nn.Module):
        """Quarters of each image as images of their own."""

        def forward(self, x: Tensor) -> Tensor:
            return x.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).flatten(0, 2)

    class Gather(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.unflatten(0, (-1, 4)).flatten(1)

    def make(config, num_classes, in_chans):
        conv = CondConv2d(in_chans, 2, 3, num_experts=4)
        return nn.Sequential(Windows(), conv, nn.AdaptiveAvgPool2d(1), Gather(), nn.Linear(8, num_classes))

    result = train(settings(tmp_path, epochs=3), build=make, progress=False)
    said = "routing is not watched: the weights must be finite, one vector for each image of a batch"
    assert warnings(caplog) == [said]
    assert {(each.routing_state, each.routing_variation) for each in result.metrics} == {("unknown", None)}


@pytest.mark.slow
def test_tensorboard_gets_the_numbers_and_the_state(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    (last,) = train(settings(tmp_path, epochs=1, log_with="tensorboard"), build=routed()).metrics
    events = accumulator.EventAccumulator(str(tmp_path / "condconv")).Reload()
    for name in NUMBERS:
        assert [each.value for each in events.Scalars(name)] == [pytest.approx(getattr(last, name))]
    (state,) = events.Tensors("routing_state/text_summary")
    assert state.tensor_proto.string_val == [b"starting"]


@pytest.mark.slow
def test_routing_learns_on_embedded_images(tmp_path, caplog):
    """A small network, routed by the standardised input: it comes to depend on the image, and accuracy on that."""

    def make(config, num_classes, in_chans):
        layers = []
        for inputs, outputs in ((in_chans, 8), (8, 16), (16, 16)):
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
        network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, num_classes))
        condconv.convert_(
            network, 4, layers=condconv.select.convs(), routing="sigmoid(standardize=True)", experts="deltas",
            example_input=torch.zeros(2, in_chans, 8, 8),
        )  # fmt: skip
        return network

    config = settings(tmp_path, epochs=20, batch_size=32, lr=0.01)
    result = train(config, build=make, progress=False)
    last = result.metrics[-1]
    assert last.routing_state == "varied"
    assert last.routing_variation > 0.1
    assert warnings(caplog) == []
    mean = next(
        each for each in inspect_checkpoint(result.last, build=make).report.interventions if each.name == "mean"
    )
    assert mean.cost > 5 * mean.cost_error > 0
