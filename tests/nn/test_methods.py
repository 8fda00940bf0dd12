"""Methods by name: outputs as their papers' formulas, written out here; parameters as their authors count them."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import condconv
from condconv.errors import UsageError
from condconv.nn import METHODS, ConditionalLayer


def layer_of(method: str, *, num_experts: int | None = None, **options: Any) -> Any:
    """Return a 3 x 3 layer of 8 to 6 channels in fp64, all of whose parameters are random."""
    torch.manual_seed(0)
    options = {"padding": 1, "bias": False, "dtype": torch.float64, **options}
    layer = condconv.CondConv2d(8, 6, 3, num_experts=num_experts, method=method, **options)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.5)
    return layer.eval()


def hidden_units(layer: Any, x: Tensor) -> Tensor:
    """Return relu(W1 GAP(x) + b1) `[B, H]`; a standardisation that has seen no image divides by sqrt(1 + eps)."""
    routing_fn, pooled = layer.routing_fn, x.mean((2, 3))
    if routing_fn.standardization is not None:
        pooled = pooled / math.sqrt(1 + routing_fn.standardization.eps)
    return F.relu(pooled @ routing_fn.hidden.weight.T + routing_fn.hidden.bias)


def scores(layer: Any, x: Tensor) -> Tensor:
    """Return the outputs of the linear map to all parts that are not weights of kernels."""
    linear = layer.routing_fn.heads.linear
    return hidden_units(layer, x) @ linear.weight.T + linear.bias


def convolved(x: Tensor, kernels: Tensor) -> Tensor:
    """Convolve each image with its own kernel."""
    pairs = zip(x, kernels, strict=True)
    return torch.cat([F.conv2d(image[None], kernel, padding=1) for image, kernel in pairs])


def condconv_formula(layer: Any, x: Tensor) -> Tensor:
    """Yang et al., equations 1 and 2: the sum of sigmoid(R GAP(x))_i W_i."""
    alpha = torch.sigmoid(x.mean((2, 3)) @ layer.routing_fn.fc.weight.T + layer.routing_fn.fc.bias)
    return convolved(x, torch.einsum("be,eoihw->boihw", alpha, layer.experts.weight))


def dyconv_formula(layer: Any, x: Tensor) -> Tensor:
    """Chen et al., section 3: attention of two layers, softmax with temperature 30 at the start."""
    fc = layer.routing_fn.fc
    pi = torch.softmax((hidden_units(layer, x) @ fc.weight.T + fc.bias) / 30, dim=1)
    return convolved(x, torch.einsum("be,eoihw->boihw", pi, layer.experts.weight))


def odconv_formula(layer: Any, x: Tensor) -> Tensor:
    """Li et al., equation 3 with shared attentions, as their code: W_i times those of kernel, filter, channel, place.

    Their sigmoids are twice as large here, one factor of two for each of the three.
    """
    channel, filters, place = torch.sigmoid(scores(layer, x)).split([8, 6, 9], 1)
    kernels, fc = layer.experts.weight, layer.routing_fn.fc
    if len(kernels) == 1:
        mixed = kernels.expand(len(x), -1, -1, -1, -1)
    else:
        weights = torch.softmax((hidden_units(layer, x) @ fc.weight.T + fc.bias) / 30, dim=1)
        mixed = torch.einsum("be,eoihw->boihw", weights, kernels)
    attended = torch.einsum("boihw,bo,bi,bhw->boihw", mixed, filters, channel, place.unflatten(1, (3, 3)))
    return convolved(x, 8 * attended)


def dcd_formula(layer: Any, x: Tensor) -> Tensor:
    """Li et al., equation 6: W = Lambda(x) W0 + P Phi(x) Q^T; the second part at the centre, as their code."""
    phi, gains = scores(layer, x).split([4, 6], 1)
    experts = layer.experts
    kernels = torch.einsum("bo,oihw->boihw", 2 * torch.sigmoid(gains), experts.weight)
    kernels[..., 1, 1] += torch.einsum("or,brs,si->boi", experts.up, phi.unflatten(1, (2, 2)), experts.down)
    return convolved(x, kernels)


def weightnet_formula(layer: Any, x: Tensor) -> Tensor:
    """Ma et al., section 3.2 with M = G = 2: a grouped linear layer of 2 O inputs and 2 O groups makes the kernel.

    An output of group g is input g times its weight. Group (o, half) has one half of kernel o. Inputs are ordered
    by half first here, and by output channel first there; sigmoids are twice theirs.
    """
    inputs = 2 * torch.sigmoid(scores(layer, x)).unflatten(1, (2, 6)).mT.flatten(1)  # [B, 2 O], the output first
    fc2 = layer.experts.weight[0].reshape(12, -1)  # the weights of each group, [2 O, C K K / 2]
    kernels = (inputs[:, :, None] * fc2).reshape(len(x), 6, 8, 3, 3)
    return convolved(x, kernels)


def se_formula(layer: Any, x: Tensor) -> Tensor:
    """Hu et al., equations 3 and 4: sigmoid(W2 relu(W1 GAP)) times the maps; of the layer's own input, and twice."""
    return F.conv2d(x, layer.experts.weight[0], padding=1) * 2 * torch.sigmoid(scores(layer, x))[..., None, None]


def code(layer: Any, x: Tensor) -> Tensor:
    """Return what our layers route by, `[B, E]`: sigmoids of the standardised pooled input, off one half."""
    routing_fn = layer.routing_fn
    pooled = x.mean((2, 3)) / math.sqrt(1 + routing_fn.standardization.eps)
    return torch.sigmoid(pooled @ routing_fn.fc.weight.T + routing_fn.fc.bias) - 0.5


def deltas_formula(layer: Any, x: Tensor) -> Tensor:
    """Ours: W0 and a sum of differences from it."""
    kernels = layer.experts.weight
    return convolved(x, kernels[0] + torch.einsum("be,eoihw->boihw", code(layer, x), kernels[1:]))


def shared_formula(layer: Any, x: Tensor) -> Tensor:
    """Ours: W0 of channels that are mixed before, by a matrix per expert where they are few."""
    mixing = torch.eye(8, dtype=x.dtype) + torch.einsum("be,eij->bij", code(layer, x), layer.experts.mixing.weight)
    return F.conv2d(torch.einsum("bij,bjhw->bihw", mixing, x), layer.experts.weight, padding=1)


FORMULAS: dict[tuple[str, int | None], Callable[[Any, Tensor], Tensor]] = {
    ("condconv", None): condconv_formula,
    ("dyconv", None): dyconv_formula,
    ("odconv", None): odconv_formula,
    ("odconv", 4): odconv_formula,
    ("dcd", None): dcd_formula,
    ("weightnet", None): weightnet_formula,
    ("se", None): se_formula,
    ("deltas", None): deltas_formula,
    ("shared", None): shared_formula,
}


def test_every_method_has_a_formula() -> None:
    assert {name for name, _ in FORMULAS} == set(METHODS)


@pytest.mark.parametrize(("method", "num_experts"), FORMULAS)
def test_a_layer_is_the_formula_of_its_paper(method: str, num_experts: int | None) -> None:
    layer, x = layer_of(method, num_experts=num_experts), torch.randn(3, 8, 7, 6, dtype=torch.float64)
    x = x + torch.randn(3, 8, 1, 1, dtype=torch.float64)  # images of other means
    expected = FORMULAS[method, num_experts](layer, x)
    torch.testing.assert_close(layer(x), expected)
    assert (layer(x) - layer(x, layer.routing_fn(x).roll(1, 0))).abs().max() > 1e-3  # and depends on its routing


@pytest.mark.parametrize("method", METHODS)
def test_a_conversion_keeps_the_output_and_can_be_repeated(method: str) -> None:
    torch.manual_seed(0)
    block = nn.Sequential(nn.Conv2d(8, 8, 3, groups=8), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 1))
    net = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), *block, nn.AdaptiveAvgPool2d(1)).eval()
    x, again = torch.randn(2, 3, 17, 17), copy.deepcopy(net)
    expected = net(x)
    report = condconv.convert_(net, method=method, example_input=x)
    torch.testing.assert_close(net(x), expected, rtol=1e-4, atol=1e-5)
    assert {layer.num_experts for layer in net.modules() if isinstance(layer, ConditionalLayer)} == {
        METHODS[method].num_experts
    }
    assert len(report.layers) == (2 if method == "dcd" else 3)
    condconv.convert_like_(again, report.to_dict(), example_input=x)
    again.load_state_dict(net.state_dict())
    torch.testing.assert_close(again(x), net(x))
    net.train()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    for _ in range(2):
        optimizer.zero_grad()
        net(x).square().mean().backward()
        optimizer.step()
    assert all(parameter.grad is not None for parameter in net.parameters())


def resnet18() -> nn.Module:
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        model: nn.Module = timm.create_model("resnet18")
    return model


def mobilenet_v2() -> nn.Module:
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        model: nn.Module = timm.create_model("mobilenetv2_100")
    return model


@pytest.mark.parametrize(
    ("build", "skip", "method", "num_experts", "millions"),
    [
        # OSVAI/ODConv's README; the stem and the shortcuts stay static there
        (resnet18, "conv1,*downsample*", "odconv", 1, 11.94),
        (resnet18, "conv1,*downsample*", "odconv", 4, 44.90),
        (mobilenet_v2, "conv_stem", "odconv", 1, 4.94),
        (mobilenet_v2, "conv_stem", "odconv", 4, 11.51),
    ],
)
def test_parameters_are_those_that_are_published(
    build: Callable[[], nn.Module], skip: str, method: str, num_experts: int, millions: float
) -> None:
    report = condconv.convert_(
        build(),
        num_experts,
        method=method,
        skip=skip.split(","),
        example_input=torch.zeros(1, 3, 64, 64, device="meta"),
    )
    assert report.params_after / 1e6 == pytest.approx(millions, abs=0.005)


def test_parameters_of_a_layer_are_those_of_other_code() -> None:
    def count(method: str) -> int:
        layer = condconv.CondConv2d(64, 48, 3, method=method, bias=False)
        return sum(parameter.numel() for parameter in layer.parameters())

    kernel = 64 * 48 * 9
    # megvii-model/WeightNet: `reduce`, to max(16, C / 16) units; `wn_fc1`; `wn_fc2`, which is one kernel
    assert count("weightnet") == (64 * 16 + 16) + (16 * 96 + 96) + kernel
    # kaijieshi7/Dynamic-convolution-Pytorch, whose two linear maps have no biases: 16 + 4 more here
    assert count("dyconv") == 64 * 16 + 16 * 4 + 4 * kernel + (16 + 4)
    # tensorflow/tpu: a linear map with a bias
    assert count("condconv") == 64 * 8 + 8 + 8 * kernel


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"method": "nope"},
            "`method` must be one of condconv, dyconv, odconv, dcd, weightnet, se, deltas, shared, got 'nope': or give",
        ),
        ({"method": 3}, "`method` must be a name, got 3: names are condconv"),
        ({"method": "se(rank=2)"}, "`method` must have options of se only, got 'rank': it has none"),
        ({"method": "deltas(rank=2)"}, "`experts` must have options of deltas only, got 'rank': it has scale"),
        ({"method": "shared(rank=0)"}, "`rank` must be a whole number, 'full', 'auto' or None, got 0"),
        ({"method": "deltas(scale=2)"}, "`scale` must be a number from 0.001 to 1, got 2: 0.1 suits"),
        ({"method": "dyconv(annealing_steps=0)"}, "`annealing_steps` must be a positive int, got 0"),
        ({"method": "se", "routing": "sigmoid"}, "`routing` must not be given with a method, got 'sigmoid' with 'se'"),
        (
            {"method": "se", "experts": "dense"},
            "`experts` must not be given with a method, got 'dense' with 'se': a met",
        ),
        (
            {"method": "se", "num_experts": 8},
            "`num_experts` must be 1 for the method 'se', which has one kernel, got 8",
        ),
    ],
)
def test_what_does_not_go_with_a_method(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        condconv.CondConv2d(8, 6, 3, **options)
    net = nn.Sequential(nn.Conv2d(8, 6, 3))
    with pytest.raises(UsageError, match=message):
        condconv.convert_(net, example_input=torch.randn(1, 8, 9, 9), **options)


def test_our_own_take_the_options_of_their_stores() -> None:
    layer = condconv.CondConv2d(8, 6, 3, method="deltas(scale=0.1)")
    assert float(layer.experts.scale) == pytest.approx(0.1)
    assert layer.num_experts == 8
    assert condconv.CondConv2d(8, 6, 1, method="shared(rank=3)", num_experts=2).experts.mixing.rank == 3


def test_annealing_steps_are_those_that_are_given() -> None:
    layer = condconv.CondConv2d(8, 6, 3, method="dyconv(annealing_steps=50)")
    condconv.nn.anneal_(layer, 25)
    assert float(layer.routing_fn.temperature) == 15.5
