"""Conversion in place: what is replaced, what stays, what is refused."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import condconv
from condconv import CondConv2d, CondLinear, Scope, convert_, select
from condconv.errors import UsageError
from condconv.nn import HierarchicalRouting, RoutingSlot, SigmoidRouting, SoftmaxRouting, TFSameConv2d


class Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 2 * channels, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(2 * channels)
        self.conv2 = nn.Conv2d(2 * channels, channels, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x)))))


class Net(nn.Module):
    def __init__(self, blocks: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.blocks = nn.Sequential(*(Residual(8) for _ in range(blocks)))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.squeeze = nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(torch.relu(self.stem(x)))
        return self.head(torch.relu(self.squeeze(self.pool(x))).flatten(1))


EXAMPLE = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
X = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def outputs(model: nn.Module) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Return the outputs in evaluation and training mode, and the buffers after the latter."""
    twin = copy.deepcopy(model)
    evaluated = twin.eval()(X)
    trained = twin.train()(X)
    return evaluated, trained, {n: b for n, b in twin.named_buffers() if "norm" in n}


@pytest.mark.parametrize("scope", ["layer", "block", "network", Scope("block", every=2)], ids=str)
@pytest.mark.parametrize("routing", ["sigmoid", "softmax", "hidden", "top_k", "constant"])
def test_the_output_stays_in_both_modes(scope, routing: str) -> None:
    model = Net().double()
    before = outputs(model)
    convert_(model, 4, layers="blocks.*", routing=routing, scope=scope, classifier=True, example_input=EXAMPLE.double())
    torch.testing.assert_close(outputs(model), before)
    experts = model.blocks[1].conv2.weight
    assert (experts.std(0) > 0).all()


def test_report() -> None:
    papers: Any = {"experts": "dense", "routing": "sigmoid"}
    report = convert_(Net(), 4, layers=select.last_blocks(1), scope="block", example_input=EXAMPLE, **papers)
    assert [layer.name for layer in report.layers] == ["blocks.2.conv1", "blocks.2.conv2"]
    first = report.layers[0]
    # 8 x 16 parameters on 8 x 8 pixels; then mixing 4 x 128
    assert (first.old_params, first.new_params, first.old_madds, first.new_madds) == (128, 512, 8192, 8704)
    assert report.params_after - report.params_before == 3 * (128 + 16 * 8 * 9 + 8) + (8 * 4 + 4)
    assert report.after.total.madds - report.before.total.madds == 4 * (128 + 1152 + 8) + 8 * 4
    text = str(report)
    assert "blocks.2.conv1  Conv2d -> CondConv2d x4  from block 'blocks.2'" in text
    assert text.splitlines()[-2].startswith("model           2 converted")
    assert text.splitlines()[-1] == "MADDs are for one example of 3 x 16 x 16"


def test_report_says_what_layers_are_made_of() -> None:
    def own(in_channels: int, num_experts: int) -> nn.Module:
        return SigmoidRouting(in_channels, num_experts)

    def first_line(**options: Any) -> str:
        return str(convert_(Net(1), 3, layers="blocks.*", example_input=EXAMPLE, **options)).splitlines()[0]

    assert first_line() == "experts per layer: 3, deltas(scale=0.1); routing: sigmoid(standardize=True)"
    assert first_line(experts="shared(outputs=2)", routing=own) == (
        "experts per layer: 3, shared(outputs=2); routing: own"
    )
    assert first_line(routing=SigmoidRouting(8, 3), scope="network").endswith("; routing: SigmoidRouting")
    assert first_line(method="condconv") == "method: condconv; experts per layer: 3, dense; routing: sigmoid"
    assert first_line(method="dyconv(annealing_steps=70)") == (
        "method: dyconv(annealing_steps=70); experts per layer: 3, dense; "
        "routing: softmax(hidden_ratio=1/4, temperature=30, final_temperature=1, annealing_steps=70)"
    )


def test_default_is_every_convolution_of_more_than_one_pixel() -> None:
    model = Net(1)
    report = convert_(model, 2, example_input=EXAMPLE)
    assert [layer.name for layer in report.layers] == ["stem", "blocks.0.conv1", "blocks.0.conv2"]
    assert type(model.squeeze) is nn.Conv2d
    assert type(model.head) is nn.Linear


def test_classifier_on_demand() -> None:
    model = Net(1)
    convert_(model, 2, layers="stem", classifier=True, example_input=EXAMPLE)
    assert isinstance(model.head, CondLinear)
    with pytest.raises(ValueError, match="`classifier` must be False for a model without a linear layer"):
        convert_(nn.Sequential(nn.Conv2d(3, 3, 3)), 2, classifier=True)


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ("*.conv1,stem", ["stem", "blocks.0.conv1", "blocks.1.conv1", "blocks.2.conv1"]),
        (["*.conv1", "stem"], ["stem", "blocks.0.conv1", "blocks.1.conv1", "blocks.2.conv1"]),
        ("blocks.*" & ~select.pointwise(), ["blocks.0.conv2", "blocks.1.conv2", "blocks.2.conv2"]),
        ("stem,head", ["stem", "head"]),
        ("*e*", ["stem", "squeeze"]),
        (lambda name, module: name in ("stem", "head"), ["stem", "head"]),
        (["stem"] | select.depth(0.9) | (lambda name, module: isinstance(module, nn.Linear)), ["stem", "head"]),
        (select.convs() & "s*", ["stem", "squeeze"]),
        (select.channels(16), ["blocks.0.conv1", "blocks.1.conv1", "blocks.2.conv1"]),
        (select.channels(1, 8) & ["s*"], ["stem", "squeeze"]),
        (select.depth(0.6), ["blocks.2.conv1", "blocks.2.conv2", "squeeze"]),
        (select.last_blocks(1), ["blocks.2.conv1", "blocks.2.conv2"]),
        (select.single_pixel(), ["squeeze"]),
    ],
)
def test_choices(layers: Any, expected: list[str]) -> None:
    report = convert_(Net(), 2, layers=layers, example_input=EXAMPLE)
    assert [layer.name for layer in report.layers] == expected


def test_what_is_skipped_stays_static() -> None:
    report = convert_(Net(1), 2, skip="stem", example_input=EXAMPLE)
    assert [layer.name for layer in report.layers] == ["blocks.0.conv1", "blocks.0.conv2"]
    report = convert_(Net(1), 2, layers="*", skip=select.depth(0.3) | ["stem"], classifier=True, example_input=EXAMPLE)
    assert [layer.name for layer in report.layers] == ["blocks.0.conv1", "head"]


def test_complement_has_no_linear_layers() -> None:
    linear = lambda name, module: isinstance(module, nn.Linear)  # noqa: E731
    report = convert_(Net(1), 2, layers=~select.convs() | linear, example_input=EXAMPLE)
    assert [layer.name for layer in report.layers] == ["head"]
    with pytest.raises(UsageError, match=r"`layers` must name linear layers in full, got ~convs\(\): give head, or a"):
        convert_(Net(1), 2, layers=~select.convs(), example_input=EXAMPLE)
    with pytest.raises(UsageError, match=r"`layers` must name linear layers in full, got 'hea\*': give head, or a"):
        convert_(Net(1), 2, layers="hea*", example_input=EXAMPLE)


def test_routers_are_never_converted() -> None:
    model = Net(1)
    convert_(model, 2, layers="stem", example_input=EXAMPLE)
    report = convert_(model, 2, layers=lambda name, module: isinstance(module, nn.Linear), example_input=EXAMPLE)
    assert [layer.name for layer in report.layers] == ["head"]


def test_depthwise_selector() -> None:
    model = condconv.create_model("mobilenet_v1_025", output_stride=8)
    report = convert_(
        model, 2, layers=select.depthwise() & select.last_blocks(2), example_input=torch.zeros(1, 3, 16, 16)
    )
    assert [layer.name for layer in report.layers] == ["blocks.4.0.conv_dw", "blocks.4.1.conv_dw"]


def test_nothing_matched_repeats_the_selector() -> None:
    with pytest.raises(UsageError, match=r"got \('blocks.\*' & depth\(0, 0.1\)\), which selects none: there are stem"):
        convert_(Net(), 2, layers="blocks.*" & select.depth(0, 0.1), example_input=EXAMPLE)
    with pytest.raises(UsageError, match="`layers` must match layers of the model, got 'block.2' for none: near"):
        convert_(Net(), 2, layers="block.2" & ~select.pointwise(), example_input=EXAMPLE)
    with pytest.raises(UsageError, match="`skip` must match layers of the model, got 'block.2' for none: near"):
        convert_(Net(), 2, skip="block.2", example_input=EXAMPLE)
    with pytest.raises(ValueError, match="which selects none: the model has none"):
        convert_(nn.Sequential(nn.ReLU()), 2, example_input=EXAMPLE)


def test_one_routing_a_block() -> None:
    model = Net()
    convert_(model, 2, layers="blocks.*", scope="block", example_input=EXAMPLE)
    slots = [{block.conv1.routing_fn, block.conv2.routing_fn} for block in model.blocks]
    assert all(len(slot) == 1 for slot in slots)
    assert len(set.union(*slots)) == 3
    assert all(isinstance(block.routing_fn, SigmoidRouting) for block in model.blocks)
    assert model.blocks[0].routing_fn.in_channels == 8


def test_partially_shared_and_single() -> None:
    model = Net()
    convert_(model, 2, layers="blocks.*", scope=Scope("block", every=2), example_input=EXAMPLE)
    assert [hasattr(block, "routing_fn") for block in model.blocks] == [True, False, True]
    single = Net()
    convert_(single, 2, layers="blocks.*", scope="network", classifier=True, example_input=EXAMPLE)
    assert [hasattr(block, "routing_fn") for block in single.blocks] == [True, False, False]
    assert single.head.routing_fn is single.blocks[0].conv1.routing_fn
    assert isinstance(single.head.routing_fn, RoutingSlot)


@pytest.mark.parametrize("scope", ["network", Scope("block", every=2)], ids=str)
def test_no_weights_are_left_behind(scope) -> None:
    model = Net()
    convert_(model, 2, layers="blocks.*", scope=scope, classifier=True, example_input=EXAMPLE)
    slots = [module for module in model.modules() if isinstance(module, RoutingSlot)]
    assert slots
    model(EXAMPLE)
    check_empty(slots)
    model.blocks[1].register_forward_hook(lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model(EXAMPLE)
    check_empty(slots)


def check_empty(slots: list[RoutingSlot]) -> None:
    for slot in slots:
        with pytest.raises(UsageError, match="which is not running"):
            slot(EXAMPLE)


def test_hierarchical_routing_is_chained() -> None:
    model = Net().double()
    before = outputs(model)
    convert_(model, 3, layers="blocks.*", scope="block", routing="hierarchical", example_input=EXAMPLE.double())
    torch.testing.assert_close(outputs(model), before)
    assert [block.routing_fn.previous_experts for block in model.blocks] == [0, 3, 3]
    model(X).sum().backward()
    assert all(block.routing_fn.fc.weight.grad is not None for block in model.blocks)


def test_hierarchical_routing_needs_blocks() -> None:
    with pytest.raises(ValueError, match='`scope` must be "block" for hierarchical routing'):
        convert_(Net(), 3, routing="hierarchical", example_input=EXAMPLE)


def test_factory_and_module_as_routing() -> None:
    model = Net(1)
    convert_(
        model,
        2,
        layers="blocks.*",
        routing=functools.partial(SoftmaxRouting, temperature=9.0),
        example_input=EXAMPLE,
    )
    assert float(model.blocks[0].conv1.routing_fn.temperature) == 9.0
    with pytest.raises(
        ValueError, match="`routing` must be a name or a factory for 2 routing functions, got one module"
    ):
        convert_(Net(1), 2, layers="blocks.*", routing=SigmoidRouting(8, 2), example_input=EXAMPLE)


def test_external_routing_is_noted_as_unchecked() -> None:
    report = convert_(Net(), 2, layers="stem", routing="external", example_input=EXAMPLE)
    assert "output not checked" in report.notes[0]


def test_blocks_can_be_chosen() -> None:
    model = Net()
    scope = Scope("block", blocks="*s.1")
    convert_(model, 2, layers="blocks.*", scope=scope, example_input=EXAMPLE)
    assert [hasattr(block, "routing_fn") for block in model.blocks] == [False, True, False]
    assert isinstance(model.blocks[0].conv1.routing_fn, SigmoidRouting)


def test_a_shared_module_stays_shared() -> None:
    conv = nn.Conv2d(4, 4, 3, padding=1)
    model = nn.Sequential(conv, nn.ReLU(), conv)
    convert_(model, 2, example_input=torch.randn(1, 4, 6, 6))
    assert isinstance(model[0], CondConv2d)
    assert model[0] is model[2]


def test_a_module_shared_by_two_blocks_is_refused_for_block_scope() -> None:
    model = Net(2)
    model.blocks[1].conv2 = model.blocks[0].conv2
    report = convert_(model, 2, layers="blocks.*", scope="block", example_input=EXAMPLE)
    assert "blocks.0.conv2" in report.refused
    assert "several blocks" in report.refused["blocks.0.conv2"]


def test_tied_parameters_are_refused() -> None:
    model = Net(2)
    model.blocks[1].conv1.weight = model.blocks[0].conv1.weight
    report = convert_(model, 2, layers="blocks.*", example_input=EXAMPLE)
    assert report.refused["blocks.0.conv1"] == "it shares a parameter with 'blocks.1.conv1': untie them first"
    assert "not converted: blocks.1.conv1: it shares a parameter" in str(report)


def test_hooks_move_along_and_handles_still_remove_them() -> None:
    model, calls = Net(1), []
    handle = model.stem.register_forward_hook(lambda module, args, output: calls.append(type(module)))
    model.stem.register_forward_pre_hook(lambda module, args, kwargs: None, with_kwargs=True)
    convert_(model, 2, layers="stem", example_input=EXAMPLE)
    calls.clear()
    model(EXAMPLE)
    assert calls == [CondConv2d]
    handle.remove()
    model(EXAMPLE)
    assert len(calls) == 1


def test_hooks_that_are_always_called_still_are() -> None:
    model, calls = Net(1), []
    model.stem.register_forward_hook(lambda *arguments: calls.append("always"), always_call=True)
    convert_(model, 2, layers="stem", example_input=EXAMPLE)
    model.stem.register_forward_pre_hook(lambda *arguments: 1 / 0)
    calls.clear()
    with pytest.raises(ZeroDivisionError):
        model(EXAMPLE)
    assert calls == ["always"]


def test_state_dict_and_parameter_hooks_are_refused() -> None:
    model = Net(1)
    model.stem.register_state_dict_post_hook(lambda *arguments: None)
    with pytest.raises(ValueError, match="stem: it has state-dict hooks"):
        convert_(model, 2, layers="stem", example_input=EXAMPLE)
    model = Net(1)
    model.stem.weight.register_hook(lambda grad: grad)
    with pytest.raises(ValueError, match="stem: its parameters have hooks"):
        convert_(model, 2, layers="stem", example_input=EXAMPLE)


def test_methods_put_on_an_instance_and_attention_are_refused() -> None:
    model = Net(1)
    model.stem.forward = lambda x: nn.Conv2d.forward(model.stem, x)
    with pytest.raises(ValueError, match="a torch.nn.modules.conv.Conv2d with a forward of its own"):
        convert_(model, 2, layers="stem", example_input=EXAMPLE)
    attention = nn.Sequential(nn.Conv2d(3, 3, 1), nn.MultiheadAttention(4, 2))
    with pytest.raises(ValueError, match="uses its weight without calling it"):
        convert_(attention, 2, layers=lambda name, module: isinstance(module, nn.Linear))


def test_a_conv_forward_of_its_own_is_refused() -> None:
    class Padded(nn.Conv2d):
        def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            return super()._conv_forward(input + 1, weight, bias)

    model = Net(1)
    model.stem = Padded(3, 8, 3, 2, 1)
    with pytest.raises(ValueError, match="Padded with a forward of its own"):
        convert_(model, 2, layers="stem", example_input=EXAMPLE)


def test_the_classifier_is_one_that_runs() -> None:
    model = Net(1)
    model.auxiliary = nn.Linear(8, 5)
    report = convert_(model, 2, layers="stem", classifier=True, example_input=EXAMPLE)
    assert [layer.name for layer in report.layers] == ["stem", "head"]


def test_blocks_in_another_layout_leave_their_layers_to_route_themselves() -> None:
    class ChannelsInnermost(Residual):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

    class Permuting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.Sequential(ChannelsInnermost(3))

        def forward(self, x: Tensor) -> Tensor:
            return self.blocks(x.permute(0, 2, 3, 1))

    report = convert_(Permuting(), 2, scope="block", example_input=EXAMPLE)
    assert "its input [2, 16, 16, 3] is not laid out as those of its layers, [2, 3, 16, 16]" in report.notes[0]


def test_a_model_that_would_return_nan_is_restored() -> None:
    class Breaking(Peeking):
        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x) * (float("nan") if self.conv.weight.dim() == 5 else 1.0)

    with pytest.raises(UsageError, match="must compute with other layers what it did before"):
        convert_(nn.Sequential(Breaking()), 2, example_input=EXAMPLE)


def test_wrong_types() -> None:
    with pytest.raises(UsageError, match="`layers` must be a pattern of names, several, or a function .*, got 5: such"):
        convert_(Net(1), 2, layers=5)
    with pytest.raises(UsageError, match="`scope` must be .* got None"):
        convert_(Net(1), 2, scope=None)
    with pytest.raises(UsageError, match="`blocks` must be a pattern of names, several, or a function"):
        Scope("block", blocks=True)


def test_backward_hooks_are_refused() -> None:
    model = Net(1)
    model.stem.register_full_backward_hook(lambda *arguments: None)
    with pytest.raises(ValueError, match="it has backward hooks, which the new layer would not call"):
        convert_(model, 2, layers="stem", example_input=EXAMPLE)


@pytest.mark.parametrize(
    "compute",
    [
        parametrizations.weight_norm,
        parametrizations.spectral_norm,
        functools.partial(prune.l1_unstructured, name="weight", amount=0.5),
    ],
    ids=["weight_norm", "spectral_norm", "prune"],
)
def test_computed_weights_are_refused(compute) -> None:
    model = Net(1)
    compute(model.stem)
    with pytest.raises(ValueError, match="stem: its weight is computed from other tensors"):
        convert_(model, 2, layers="stem", example_input=EXAMPLE)
    with pytest.raises(
        ValueError, match="`static` must be a layer that experts can be made of, .*: its weight is comp"
    ):
        CondConv2d.from_conv(model.stem)


def test_a_forward_of_its_own_is_refused() -> None:
    class Scaled(nn.Conv2d):
        def forward(self, input: Tensor) -> Tensor:
            return 2 * super().forward(input)

    model = Net(1)
    model.stem = Scaled(3, 8, 3, 2, 1)
    with pytest.raises(ValueError, match=r"Scaled with a forward of its own"):
        convert_(model, 2, layers="stem", example_input=EXAMPLE)


def test_lazy_layers_exist_once_the_model_has_run_on_the_example() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.LazyConv2d(4, 3))
    assert len(convert_(model, 2, example_input=EXAMPLE).layers) == 2
    with pytest.raises(ValueError, match="0: its parameters do not exist yet: run the model once first"):
        convert_(nn.Sequential(nn.LazyConv2d(4, 3)), 2, layers=select.convs())


def test_tensorflow_padding_is_kept() -> None:
    model = nn.Sequential(TFSameConv2d(3, 8, 3, 2)).double()
    expected = model(X)
    convert_(model, 2, example_input=EXAMPLE.double())
    assert model[0].padding == "tf_same"
    torch.testing.assert_close(model(X), expected)


@pytest.mark.parametrize(
    ("wrap", "message"),
    [
        (torch.jit.script, "`model` must not be scripted"),
        (torch.compile, "`model` must not be compiled, got one that is: convert the module first"),
        (nn.DataParallel, "`model` must not be wrapped, got a DataParallel: convert model.module, then wrap it"),
        (lambda model: model.stem, r"use condconv.CondConv2d.from_static\(model\)"),
    ],
    ids=["script", "compile", "wrapped", "a conv"],
)
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is")
def test_models_that_are_refused(wrap, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        convert_(wrap(Net(1)), 2, example_input=EXAMPLE)


def test_distributed_model_is_refused(tmp_path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        with pytest.raises(
            ValueError, match="wrapped, got a DistributedDataParallel: convert model.module, then wrap it"
        ):
            convert_(nn.parallel.DistributedDataParallel(Net(1)), 2, example_input=EXAMPLE)
    finally:
        torch.distributed.destroy_process_group()


def test_not_a_module() -> None:
    with pytest.raises(UsageError, match="`model` must be a torch.nn.Module, got 'resnet50'"):
        convert_("resnet50", 2)


class Peeking(nn.Module):
    """Uses the kernel of a layer without calling it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv2d(x, self.conv.weight, self.conv.bias) + self.conv(x)


def test_a_model_that_fails_after_conversion_is_restored() -> None:
    model = nn.Sequential(Peeking(), Residual(4))
    before, names = list(model.state_dict()), [name for name, _ in model.named_modules()]
    with pytest.raises(
        UsageError, match="must run as before with other layers, got an error on .* it has been restored"
    ):
        convert_(model, 2, scope="block", example_input=EXAMPLE)
    assert list(model.state_dict()) == before
    assert [name for name, _ in model.named_modules()] == names
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
    model(EXAMPLE)


def test_a_model_that_would_compute_something_else_is_restored() -> None:
    class Summing(Peeking):
        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x) + self.conv.weight.abs().sum()

    model = nn.Sequential(Summing())
    with pytest.raises(UsageError, match="what it did before, got an output that differs by .* it has been restored"):
        convert_(model, 4, example_input=EXAMPLE)
    assert type(model[0].conv) is nn.Conv2d


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_device_dtype_and_mode_are_kept(dtype: torch.dtype) -> None:
    model = Net().to(dtype).eval()
    model.blocks[1].train()
    convert_(model, 4, scope="block", example_input=EXAMPLE.to(dtype))
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert not model.stem.training
    assert not model.blocks[0].routing_fn.training
    assert model.blocks[1].conv1.training
    assert model.blocks[1].routing_fn.training
    assert {layer.training for layer in (model.blocks[2].conv1, model.head)} == {False}


def test_channels_last_is_kept() -> None:
    model = Net().to(memory_format=torch.channels_last)
    convert_(model, 2, layers="blocks.*", example_input=EXAMPLE)
    assert model.blocks[0].conv2.weight[0].is_contiguous(memory_format=torch.channels_last)
    model.to(memory_format=torch.contiguous_format).to(memory_format=torch.channels_last)
    assert model.blocks[0].conv2.weight[0].is_contiguous(memory_format=torch.channels_last)


def test_without_an_example_an_image_is_guessed() -> None:
    report = convert_(Net(1), 2)
    assert report.after is not None
    # The stem gives 112 x 112 pixels of 8 channels from 27 products each.
    assert report.layers[0].old_madds == 112 * 112 * 8 * 27


def test_a_guess_that_fails_is_noted() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 5))
    with pytest.raises(ValueError, match="`example_input` must be given without `layers`, .* fails on a guess"):
        convert_(model, 2)  # the default could not tell layers of one pixel
    report = convert_(model, 2, layers=select.convs())
    assert report.before is None
    assert "output not checked: `example_input` must be given, got None: Sequential fails on a guess" in report.notes[0]
    assert "-" in str(report)
    with pytest.raises(ValueError, match="`example_input` must be given with scope='block'"):
        convert_(Net512(), 2, layers=select.convs(), scope="block")


class Net512(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.reshape(-1, 3, 16, 15))


def test_an_example_that_fails_is_raised() -> None:
    with pytest.raises(RuntimeError, match="expected input"):
        convert_(Net(1), 2, example_input=torch.zeros(1, 4, 16, 16))


def test_converting_twice_leaves_conditional_layers_alone() -> None:
    model = Net(2)
    convert_(model, 2, layers="blocks.0.*", scope="block", example_input=EXAMPLE)
    first = model.blocks[0].conv1
    report = convert_(model, 4, layers=select.convs(), example_input=EXAMPLE)
    assert model.blocks[0].conv1 is first
    with pytest.raises(ValueError, match="`model` must have layers left to convert, got only conditional convolutions"):
        convert_(model, 4, example_input=EXAMPLE)
    assert "blocks.1.conv1" in [layer.name for layer in report.layers]


@pytest.mark.slow
def test_compiled_exported_copied_after_conversion() -> None:
    model = Net().eval()
    convert_(model, 2, layers="blocks.*", scope="block", classifier=True, example_input=EXAMPLE)
    x = X.float()
    expected = model(x)
    torch.testing.assert_close(copy.deepcopy(model)(x), expected, rtol=0, atol=0)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), expected, rtol=1e-4, atol=1e-5)
    batch = torch.export.Dim("batch")
    program = torch.export.export(model, (EXAMPLE,), dynamic_shapes=({0: batch},))
    torch.testing.assert_close(program.module()(x), expected, rtol=1e-4, atol=1e-5)


def test_random_start_is_not_checked_for_equality() -> None:
    model = Net().eval()
    before = model(EXAMPLE)
    convert_(model, 2, layers="blocks.*", scope="block", init="random", example_input=EXAMPLE)
    assert not torch.allclose(model(EXAMPLE), before)


def test_hierarchical_factory_subclass_counts_as_hierarchical() -> None:
    class Chained(HierarchicalRouting):
        pass

    model = Net(2)
    convert_(model, 2, layers="blocks.*", scope="block", routing=Chained, example_input=EXAMPLE)
    assert model.blocks[1].routing_fn.previous_experts == 2
    for routing in ("hierarchical", Chained, functools.partial(Chained, expert_dropout=0.1)):
        with pytest.raises(ValueError, match=r'`scope` must be "block" for hierarchical routing, got \'network\''):
            convert_(Net(2), 2, layers="blocks.*", scope="network", routing=routing, example_input=EXAMPLE)


def test_bad_scopes_and_selectors() -> None:
    with pytest.raises(ValueError, match='`scope` must be "layer", "block", "network" or a Scope, got \'global\''):
        convert_(Net(1), 2, scope="global")
    with pytest.raises(ValueError, match="`every` must be a positive number of blocks, got 0"):
        Scope("block", every=0)
    with pytest.raises(ValueError, match='`every` must be 1 unless the scope is "block"'):
        Scope("network", every=2)
    with pytest.raises(ValueError, match="`scope` must be 'layer' for 'stem', the first .* it is not part of a block"):
        convert_(Net(1), 2, scope="network", example_input=EXAMPLE)
    with pytest.raises(ValueError, match="`start` must be a number from 0 to `stop`, got 0.9"):
        select.depth(0.9, 0.1)
    with pytest.raises(ValueError, match="`count` must be a positive int, got 0"):
        select.last_blocks(0)


def test_squeeze_and_excitation_is_no_block_and_stays_static() -> None:
    from torchvision.models import efficientnet_b0

    model = efficientnet_b0(weights=None)
    report = convert_(model, 2, layers=select.last_blocks(3), scope="block", example_input=torch.randn(1, 3, 64, 64))
    names = [layer.name for layer in report.layers]
    assert {name[: len("features.x.x")] for name in names} == {"features.6.2", "features.6.3", "features.7.0"}
    assert not [name for name in names if "fc" in name]
    assert {name: hasattr(model.get_submodule(name), "routing_fn") for name in ("features.6.2", "features.7.0")} == {
        "features.6.2": True,
        "features.7.0": True,
    }


def test_a_block_that_takes_a_list_leaves_its_layers_to_route_themselves() -> None:
    class Summing(Residual):
        def forward(self, x: Any) -> Tensor:
            return super().forward(sum(x))

    class Listing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList([Summing(3)])

        def forward(self, x: Tensor) -> Tensor:
            return self.blocks[0]([x, x])

    model = Listing()
    report = convert_(model, 2, scope="block", example_input=EXAMPLE)
    assert isinstance(model.blocks[0].conv1.routing_fn, SigmoidRouting)
    assert report.notes == (
        "the layers of 'blocks.0' route by their own inputs: it cannot route them, its first input must be a tensor "
        "[B, C, ...], got something else",
    )


@dataclass
class Output:
    logits: torch.Tensor


class Returning(nn.Module):
    """A model that returns what a function makes of its convolution and of that one's output."""

    def __init__(self, make: Callable[[nn.Conv2d, torch.Tensor], Any]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.make = make

    def forward(self, x: torch.Tensor) -> Any:
        return self.make(self.conv, self.conv(x))


def test_an_output_in_a_dataclass_is_compared() -> None:
    model = Returning(lambda conv, y: Output(y + conv.weight.sum()))
    with pytest.raises(UsageError, match="must compute with other layers what it did before"):
        convert_(model, num_experts=3, example_input=torch.randn(2, 3, 8, 8))
    assert type(model.conv) is nn.Conv2d


def test_an_output_that_cannot_be_compared_is_noted() -> None:
    model = Returning(lambda conv, y: str(y.shape))
    report = convert_(model, num_experts=3, example_input=torch.randn(2, 3, 8, 8))
    assert any(note.startswith("output not checked: it holds no tensors") for note in report.notes)


def test_an_example_that_gives_no_finite_number_is_said_to_check_nothing():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    report = condconv.convert_(model, 2, example_input=torch.full((1, 3, 8, 8), float("nan")))
    assert any(note.startswith("output not checked: the network gave no finite number") for note in report.notes)


def test_inference_mode_is_refused_since_nothing_could_be_trained():
    with torch.inference_mode(), pytest.raises(ValueError, match=r"outside torch.inference_mode"):
        convert_(nn.Sequential(nn.Conv2d(3, 8, 3)))


def test_a_symbolic_trace_is_named():
    network = Net()
    convert_(network, 2, layers=select.last_blocks(1), scope="block", example_input=torch.randn(1, 3, 8, 8))
    with pytest.raises(UsageError, match=r"torch.fx traces with proxies, trace with torch.export"):
        torch.fx.symbolic_trace(network)
