"""Quantized experts in layers and networks."""

from __future__ import annotations

import copy
import pickle
from collections import OrderedDict

import pytest
import torch
from torch import nn

from condconv import (
    CondConv2d,
    CondConvTranspose2d,
    CondLinear,
    convert_,
    count,
    fold_batch_norms_,
    quantize_experts_,
)
from condconv.errors import UsageError
from condconv.nn import ConditionalLayer
from condconv.ops.quantized import widen

X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def network() -> nn.Module:
    layers = {
        "stem": nn.Conv2d(3, 24, 3, stride=2),
        "blocks": nn.Sequential(
            CondConv2d(24, 24, 3, padding=1, groups=24, num_experts=4),
            nn.ReLU(),
            CondConv2d(24, 40, 1, bias=False, num_experts=4),
        ),
        "pool": nn.AdaptiveAvgPool2d(1),
        "flatten": nn.Flatten(),
        "classifier": CondLinear(40, 10, num_experts=4),
    }
    return nn.Sequential(OrderedDict(layers)).eval().requires_grad_(False)


@pytest.mark.parametrize(("dtype", "error"), [("int8", 0.02), ("bfloat16", 0.01)])
def test_a_network_computes_nearly_what_it_did(dtype: str, error: float) -> None:
    """An int8 number is off by at most 1/254 of the largest, a bfloat16 by 1/256 of itself; three layers add up."""
    model = network()
    expected = model(X)
    report = quantize_experts_(model, dtype)
    output = model(X)
    assert not torch.equal(output, expected)
    assert (output - expected).abs().max() < error * expected.abs().max()
    assert [layer.name for layer in report.layers] == ["blocks.0", "blocks.2", "classifier"]
    assert not any("weight_scale" in name for name in network().state_dict())


@pytest.mark.parametrize("dtype", ["int8", "bfloat16"])
def test_each_kind_of_layer_computes_what_its_widened_experts_do(dtype: str) -> None:
    for layer, shape in (
        (CondConv2d(4, 6, 3, groups=2, num_experts=3), (2, 4, 7, 7)),
        (CondConvTranspose2d(4, 6, 3, groups=2, num_experts=3), (2, 4, 5, 5)),
        (CondLinear(5, 4, num_experts=3), (2, 7, 5)),
    ):
        layer.requires_grad_(False)
        wide, x = copy.deepcopy(layer), torch.randn(shape)
        quantize_experts_(layer, dtype)
        wide.experts.weight.copy_(layer.experts.mix(torch.eye(3, dtype=torch.float64))[0])
        torch.testing.assert_close(layer(x), wide(x), rtol=1e-5, atol=1e-5)
        constant = torch.rand(3)
        torch.testing.assert_close(layer.to_static(constant)(x), wide.to_static(constant)(x))
        assert layer.to_static(constant).weight.dtype == torch.float32


def test_the_report_by_hand() -> None:
    """One expert of one output channel, 127 and 0.4: scale 1, 0.4 becomes 0. One of 2 x 2 numbers that are exact."""
    first, second = CondLinear(2, 1, num_experts=1), CondLinear(2, 2, num_experts=1)
    first.weight.data.copy_(torch.tensor([[[127.0, 0.4]]]))
    second.weight.data.fill_(-3.0)
    report = quantize_experts_(nn.Sequential(first, nn.ReLU(), second))
    assert report.dtype == "int8"
    assert [layer.name for layer in report.layers] == ["0", "2"]
    assert [layer.bytes_before for layer in report.layers] == [8, 16]
    assert [layer.bytes_after for layer in report.layers] == [2 + 4, 4 + 8]
    assert report.layers[0].error == pytest.approx(0.4 / (127**2 + 0.4**2) ** 0.5)
    assert report.layers[1].error == pytest.approx(0, abs=1e-7)
    assert (report.bytes_before, report.bytes_after) == (24, 18)
    lines = str(report).splitlines()
    assert lines[0].split() == ["layer", "experts", "bytes", "->", "bytes", "relative", "error"]
    assert lines[2].split() == ["0", "int8", "8", "6", "3.15e-03"]
    assert lines[4].split() == ["total", "int8", "24", "18", "3.15e-03"]
    assert first.experts.weight_scale.tolist() == [[1.0]]
    assert first.weight.tolist() == [[[127, 0]]]


def test_bfloat16_report_by_hand() -> None:
    """8 bits hold 1 + 1/128 and not 1 + 1/256, which goes to the even 1."""
    layer = CondLinear(1, 1, num_experts=1)
    layer.weight.data.fill_(1 + 1 / 256)
    report = quantize_experts_(layer, "bfloat16")
    assert (report.bytes_before, report.bytes_after) == (4, 2)
    assert report.layers[0].error == pytest.approx(1 / 257)


def test_experts_of_zeros_have_no_error() -> None:
    layer = CondLinear(2, 1, num_experts=1)
    layer.weight.data.zero_()
    assert quantize_experts_(layer).layers[0].error == 0


def test_patterns_choose_layers() -> None:
    model = network()
    report = quantize_experts_(model, layers=["*.2", "classifier"])
    assert [layer.name for layer in report.layers] == ["blocks.2", "classifier"]
    assert not model.blocks[0].experts.quantized
    assert [layer.name for layer in quantize_experts_(model, "bfloat16", layers="blocks.0").layers] == ["blocks.0"]


@pytest.mark.parametrize("dtype", ["int8", "bfloat16"])
def test_round_trip_of_the_state_dict_and_copies(dtype: str) -> None:
    model = network()
    quantize_experts_(model, dtype)
    again = network()
    quantize_experts_(again, dtype)
    again.load_state_dict(model.state_dict())
    expected = model(X)
    assert torch.equal(again(X), expected)
    assert torch.equal(copy.deepcopy(model)(X), expected)
    assert torch.equal(pickle.loads(pickle.dumps(model))(X), expected)


def test_a_state_dict_of_the_other_kind_is_refused() -> None:
    ordinary, quantized = network(), network()
    quantize_experts_(quantized)
    before = [model.blocks[2].weight.clone() for model in (ordinary, quantized)]
    with pytest.raises(RuntimeError, match="must be torch.float32, as here, got torch.int8: call condconv.quantize_"):
        ordinary.load_state_dict(quantized.state_dict(), strict=False)
    with pytest.raises(RuntimeError, match="must be torch.int8, as here, got torch.float32: load into the ordinary"):
        quantized.load_state_dict(network().state_dict(), strict=False)
    for model, weight in zip((ordinary, quantized), before, strict=True):
        assert torch.equal(model.blocks[2].weight, weight)


@pytest.mark.parametrize("dtype", ["int8", "bfloat16"])
@pytest.mark.parametrize("change", [nn.Module.half, nn.Module.double, lambda m: m.to(torch.float16), nn.Module.float])
def test_experts_outlive_a_change_of_the_models_dtype(change, dtype: str) -> None:
    layer = CondConv2d(4, 6, 3, num_experts=3).requires_grad_(False)
    quantize_experts_(layer, dtype)
    before, scale = layer.weight.clone(), layer.experts.weight_scale
    change(layer)
    assert layer.weight.dtype == before.dtype
    assert torch.equal(layer.weight, before)
    if scale is not None:
        assert layer.experts.weight_scale.dtype == torch.float32
        assert torch.equal(layer.experts.weight_scale, scale)
    x = torch.randn(2, 4, 6, 6, dtype=layer.bias.dtype)
    exact = widen(before, scale, 1, False, torch.float64)
    wide = copy.deepcopy(layer).double()
    experts = wide.experts
    experts.weight, experts.weight_scale, experts.quantized = nn.Parameter(exact, requires_grad=False), None, False
    eps = torch.finfo(layer.bias.dtype).eps
    torch.testing.assert_close(layer(x).double(), wide(x.double()), rtol=0, atol=8 * max(eps, 1e-7))


def test_moves_and_layouts() -> None:
    layer = CondConv2d(4, 6, 3, num_experts=3).requires_grad_(False)
    quantize_experts_(layer)
    x = torch.randn(2, 4, 6, 6)
    expected = layer(x)
    layer.to(memory_format=torch.channels_last)
    assert not layer.weight.is_contiguous()
    assert torch.allclose(layer(x), expected, atol=1e-6)
    empty = copy.deepcopy(layer).to("meta").to_empty(device="cpu")
    assert (empty.weight.dtype, empty.experts.weight_scale.dtype) == (torch.int8, torch.float32)


def test_training_afterwards_is_refused() -> None:
    model = nn.Sequential(CondConv2d(3, 4, 3, num_experts=2))
    quantize_experts_(model)
    assert not model[0].weight.requires_grad
    with pytest.raises(UsageError, match=r"got quantized ones \(torch.int8\): call under torch.no_grad()"):
        model(X)  # the router would be trained
    with torch.inference_mode():
        model(X)
    model[0].routing_fn.requires_grad_(False)
    model[0].bias.requires_grad_(False)
    model(X)
    with pytest.raises(UsageError, match="got quantized ones"):
        model(X.clone().requires_grad_())


def test_batch_norms_are_folded_first() -> None:
    model = nn.Sequential(CondConv2d(3, 4, 3, num_experts=2), nn.BatchNorm2d(4)).eval().requires_grad_(False)
    expected = model(X)
    quantized = copy.deepcopy(model)
    quantize_experts_(quantized)
    with pytest.raises(
        UsageError, match=r"got quantized ones \(torch.int8\): fold the batch norm first, then quantize"
    ):
        fold_batch_norms_(quantized, X[:1])
    assert isinstance(quantized[1], nn.BatchNorm2d)
    fold_batch_norms_(model, X[:1])
    quantize_experts_(model.requires_grad_(False))
    assert (model(X) - expected).abs().max() < 0.02 * expected.abs().max()


def test_other_layers_can_still_be_converted() -> None:
    model = nn.Sequential(CondConv2d(3, 4, 3, num_experts=2), nn.Conv2d(4, 4, 3)).eval()
    quantize_experts_(model)
    with torch.no_grad():
        expected = model(X)
        report = convert_(model, 2, example_input=X)
        assert [layer.name for layer in report.layers] == ["1"]
        torch.testing.assert_close(model(X), expected, rtol=1e-4, atol=1e-4)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = CondConv2d(4, 4, 1, num_experts=2), CondConv2d(4, 4, 1, num_experts=2)
        self.second.experts.weight = self.first.experts.weight


def half() -> nn.Module:
    return nn.Sequential(CondConv2d(3, 4, 3)).half()


def not_finite() -> nn.Module:
    layer = CondConv2d(3, 4, 3)
    layer.weight.data[0, 0, 0, 0, 0] = float("nan")
    return nn.Sequential(layer)


def already() -> nn.Module:
    model = nn.Sequential(CondConv2d(3, 4, 3), CondConv2d(4, 4, 3))
    quantize_experts_(model, layers="1")
    return model


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 3)), "`model` must have conditional layers, got Sequential without any"),
        (already, "got '1': they are already, in torch.int8"),
        (half, "got '0': they are torch.float16, not torch.float32: call model.float\\(\\) first"),
        (lambda: nn.Sequential(CondConv2d(3, 4, 3, device="meta")), "got '0': they have no values"),
        (not_finite, "got '0': they are not all finite"),
        (Tied, "got 'first': it shares a parameter with 'second': untie them first"),
    ],
)
def test_what_cannot_be_is_said_and_nothing_is_changed(make, message: str) -> None:
    model = make()
    before = [(parameter.dtype, id(parameter)) for parameter in model.parameters()]
    with pytest.raises(UsageError, match=message):
        quantize_experts_(model)
    assert [(parameter.dtype, id(parameter)) for parameter in model.parameters()] == before


def test_wrong_arguments_are_said() -> None:
    model = network()
    with pytest.raises(UsageError, match="`dtype` must be one of 'int8', 'bfloat16', got 'int4'"):
        quantize_experts_(model, "int4")
    with pytest.raises(
        UsageError, match="`layers` must match conditional layers, got 'block.5' for none: near names are blocks.2"
    ):
        quantize_experts_(model, layers=("classifier", "block.5"))
    assert not any(layer.experts.quantized for layer in model.modules() if isinstance(layer, ConditionalLayer))


def test_a_parametrized_layer_is_refused() -> None:
    layer = CondConv2d(3, 4, 3)
    nn.utils.parametrizations.weight_norm(layer.experts)
    with pytest.raises(UsageError, match="its experts are computed from other tensors"):
        quantize_experts_(nn.Sequential(layer))


class Casting(nn.Module):
    """Brings its input to the dtype of a weight, as CLIP and timm's edgenext do, and its output back."""

    def __init__(self, back: bool) -> None:
        super().__init__()
        self.first = CondConv2d(3, 4, 3, bias=False, num_experts=2)
        self.second = CondConv2d(4, 2, 1, bias=False, num_experts=2)
        self.back = back

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.second(self.first(x.to(self.first.weight.dtype)))
        return y.to(x.dtype) if self.back else y


@pytest.mark.parametrize(
    ("dtype", "back", "message"),
    [
        ("int8", True, "`model` must run as before with other layers, got an error on the example"),
        (
            "bfloat16",
            True,
            "got an error on the example .'first' is given torch.bfloat16 instead of torch.float32: by the dtype",
        ),
        ("bfloat16", False, "'first' is given torch.bfloat16"),
    ],
)
@pytest.mark.parametrize("guess", [True, False])
def test_a_model_that_casts_by_the_dtype_of_a_weight_is_restored(dtype, back, message, guess) -> None:
    model = Casting(back).eval().requires_grad_(False)
    expected = model(X)
    with pytest.raises(UsageError, match=message):
        quantize_experts_(model, dtype, example_input=None if guess else X)
    assert not any(layer.experts.quantized for layer in (model.first, model.second))
    assert torch.equal(model(X), expected)
    report = quantize_experts_(model, dtype, layers="second")
    assert report.output_error == pytest.approx(0, abs=0.02)


def test_outputs_of_other_dtypes_and_numbers_that_are_not_finite_are_refused() -> None:
    class Told(Casting):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.second(self.first(x))
            return y.double() if self.second.weight.dtype == torch.int8 else y

    class Broken(Casting):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(self.first(x)) / (self.second.experts.weight_scale is None)

    with pytest.raises(UsageError, match=r"got torch.float64 \(2, 2, 30, 30\) as its output instead of torch.float32"):
        quantize_experts_(Told(True), example_input=X)
    with pytest.raises(UsageError, match="an output that is not finite any more"):
        quantize_experts_(Broken(True), example_input=X)


def test_the_change_of_the_output_is_reported() -> None:
    model = network()
    expected = model(X)
    report = quantize_experts_(model, example_input=X)
    assert report.output_error == pytest.approx(((model(X) - expected).norm() / expected.norm()).item(), rel=1e-4)
    assert str(report).splitlines()[-1] == f"relative change of the output: {report.output_error:.2e}"


def test_a_guess_that_fails_is_noted() -> None:
    model = nn.Sequential(CondConv2d(3, 4, 3), nn.Flatten(), CondLinear(4 * 36, 5))
    report = quantize_experts_(model)
    assert report.output_error is None
    assert report.notes[0].startswith("output not checked: ")
    assert "note: output not checked" in str(report)
    with pytest.raises(RuntimeError, match="expected input"):
        quantize_experts_(nn.Sequential(CondConv2d(3, 4, 3), nn.Conv2d(3, 4, 1)), example_input=X)


@pytest.mark.parametrize(("layers", "skip"), [(None, "1"), (lambda name, layer: layer.in_channels == 2, None)])
def test_layers_are_chosen_and_skipped(layers, skip):
    model = nn.Sequential(CondConv2d(2, 3, 1, num_experts=2), CondConv2d(3, 3, 1, num_experts=2))
    report = quantize_experts_(model, layers=layers, skip=skip, example_input=torch.ones(1, 2, 4, 4))
    assert [each.name for each in report.layers] == ["0"]


@pytest.mark.parametrize("dtype", ["int8", "bfloat16"])
def test_the_guessed_input_is_not_quantized(dtype: str) -> None:
    net = nn.Sequential(CondConv2d(3, 4, 3), nn.ReLU())
    quantize_experts_(net, dtype)
    assert count(net).example_shape == (3, 224, 224)
