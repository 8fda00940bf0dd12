"""Routers whose pooled input is standardised by running statistics."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import condconv
from condconv.errors import UsageError
from condconv.export import export
from condconv.nn import CondConv2d, SigmoidRouting, Standardization, make_routing


def test_by_hand() -> None:
    """Two updates: the first is taken whole, the second as half of a plain average."""
    layer = Standardization(1, momentum=0.25, eps=0.0)
    first = layer(torch.tensor([[1.0], [3.0]]))  # mean 2, variance 1
    assert first.flatten().tolist() == [-1.0, 1.0]
    layer(torch.tensor([[6.0], [6.0]]))  # all four: mean (1 + 3 + 6 + 6) / 4 = 4, variance (9 + 1 + 4 + 4) / 4
    assert (layer.mean.item(), layer.var.item(), layer.updates.item()) == (4.0, 4.5, 2.0)
    for _ in range(3):
        layer(torch.tensor([[4.0]]))  # shares 1/3, then 1/4, the least, twice
    assert layer.mean.item() == 4.0
    assert layer.var.item() == pytest.approx(4.5 * (2 / 3) * (3 / 4) ** 2)
    layer.eval()
    assert layer(torch.tensor([[4.0], [5.0]])).flatten().tolist() == pytest.approx([0.0, layer.var.item() ** -0.5])


def test_single_examples_have_the_statistics_of_all() -> None:
    torch.manual_seed(0)
    examples = torch.randn(200, 3) * torch.tensor([0.1, 1.0, 10.0]) + 2
    layer = Standardization(3, momentum=1e-4)
    for example in examples:
        layer(example[None])
    torch.testing.assert_close(layer.mean, examples.mean(0), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(layer.var, examples.var(0, correction=0), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite_leave_no_trace(bad: float) -> None:
    layer = Standardization(2)
    layer(torch.tensor([[1.0, 2.0], [2.0, 5.0]]))
    before = copy.deepcopy(layer.state_dict())
    layer(torch.tensor([[1.0, bad], [1.0, 1.0]]))
    assert all(map(torch.equal, before.values(), layer.state_dict().values()))


def test_constant_features_give_no_routing_and_no_nan() -> None:
    routing_fn = SigmoidRouting(3, 2, standardize=True)
    x = torch.full((4, 3, 5, 5), 7.0)
    weights = routing_fn(x)
    assert torch.equal(weights, weights[:1].expand(4, -1))
    assert weights.isfinite().all()
    assert routing_fn(x[:0]).shape == (0, 2)


def test_examples_do_not_depend_on_each_other_nor_have_statistics_gradients() -> None:
    routing_fn = SigmoidRouting(3, 2, standardize=True)
    x = torch.randn(6, 3, 4, 4)
    routing_fn(x)
    frozen = copy.deepcopy(routing_fn).eval()
    torch.testing.assert_close(frozen(x)[2:3], frozen(x[2:3]))
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(frozen.train()(x)[2].sum(), x)
    assert gradient[2].abs().sum() > 0
    assert not gradient[[0, 1, 3, 4, 5]].any()


def test_a_router_learns_what_tells_images_apart() -> None:
    """Features with a large mean and a small deviation, as norms and ReLU leave them; the class is their sign."""
    torch.manual_seed(0)
    signs = torch.randint(0, 2, (512,)) * 2.0 - 1
    pooled = 2 + 0.1 * signs[:, None] * torch.ones(1, 8) + 0.05 * torch.randn(512, 8)
    found = {}
    for standardize in (False, True):
        routing_fn = SigmoidRouting(8, 1, standardize=standardize)
        routing_fn.start_constant_()
        optimizer = torch.optim.SGD(routing_fn.parameters(), 0.1)
        for batch in range(20):
            rows = slice(16 * batch, 16 * batch + 16)
            loss = nn.functional.binary_cross_entropy(routing_fn(pooled[rows])[:, 0], (signs[rows] + 1) / 2)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        found[standardize] = routing_fn.eval()(pooled).std().item()
    assert found[True] > 0.3 > 10 * found[False]


@pytest.mark.parametrize("name", ["sigmoid", "softmax", "hidden", "hierarchical", "top_k"])
@pytest.mark.parametrize("scope", ["layer", "block"])
def test_converted_trained_saved_and_exported(tmp_path: Path, name: str, scope: str) -> None:
    if (name, scope) == ("hierarchical", "layer"):
        pytest.skip("a chain needs blocks")
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU()), nn.Sequential(nn.Conv2d(6, 6, 3), nn.ReLU())]
    model = nn.Sequential(nn.Sequential(*blocks), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    x = torch.randn(4, 3, 9, 9)
    expected = model(x)
    routing = f"{name}(standardize=True)"
    report = condconv.convert_(model, 2, routing=routing, scope=scope, example_input=x)
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)
    model.train()(x).sum().backward()
    model.eval()
    assert any(name.endswith("standardization.mean") and value.any() for name, value in model.state_dict().items())
    again = nn.Sequential(nn.Sequential(*copy.deepcopy(blocks)), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    again[0][0][0], again[0][1][0] = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3)
    condconv.convert_like_(again, report.to_dict())
    again.load_state_dict(model.state_dict())
    torch.testing.assert_close(again(x), model(x))
    exported = export(model, tmp_path / "n.pt2", format="torch-export", example_input=x)
    assert exported.verified


@pytest.mark.parametrize("name", ["sigmoid", "softmax", "hidden", "top_k"])
def test_openvino_multiplies_the_right_channels(tmp_path: Path, name: str) -> None:
    """It merges a factor per channel into a mean over the pixels of [B, C, H * W], along the wrong dimension."""
    pytest.importorskip("openvino")
    torch.manual_seed(0)
    model = nn.Sequential(CondConv2d(8, 6, 3, num_experts=3, routing=f"{name}(standardize=True)"))
    for _ in range(9):
        model(torch.randn(4, 8, 9, 9) + torch.arange(8)[:, None, None])
    assert export(model.eval(), tmp_path / "n.xml", format="openvino", example_input=torch.randn(2, 8, 9, 9)).verified


def test_it_is_not_loaded_from_or_written_as_a_plain_sigmoid() -> None:
    plain = condconv.create_model("tf_efficientnet_cc_b0_4e", num_classes=3)
    model = condconv.create_model("tf_efficientnet_cc_b0_4e", num_classes=3, routing="sigmoid(standardize=True)")
    with pytest.raises(UsageError, match="its routing standardises its input"):
        condconv.to_timm_state_dict(model)
    with pytest.raises(UsageError, match="`model` must route by a sigmoid of one linear layer to take"):
        condconv.weights.load_state_dict(model, condconv.to_timm_state_dict(plain))
    with pytest.raises(UsageError, match="`model` must route as state dict was trained to, which lacks"):
        condconv.weights.load_state_dict(model, plain.state_dict())


def test_compiled() -> None:
    layer = CondConv2d(3, 4, 3, num_experts=2, routing="sigmoid(standardize=True)")
    x = torch.randn(4, 3, 6, 6)
    compiled = copy.deepcopy(layer)
    compiled.compile(backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), layer(x))
    name = "routing_fn.standardization.mean"
    torch.testing.assert_close(compiled.state_dict()[name], layer.state_dict()[name])


def test_the_option_is_checked() -> None:
    with pytest.raises(UsageError, match="`standardize` must be"):
        make_routing("sigmoid(standardize='yes')", 4, 2)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_models_of_any_dtype_train_and_round_no_statistics(dtype: torch.dtype) -> None:
    layer = CondConv2d(3, 4, 3, num_experts=2, routing="sigmoid(standardize=True)").to(dtype)
    layer(torch.randn(2, 3, 5, 5, dtype=dtype)).sum().backward()
    statistics = layer.routing_fn.standardization.state_dict()
    wide = torch.promote_types(dtype, torch.float32)
    assert {each.dtype for each in statistics.values()} == {wide}
    layer.load_state_dict({name: value.to(dtype) for name, value in layer.state_dict().items()}, assign=True)
    assert layer(torch.randn(2, 3, 5, 5, dtype=dtype)).isfinite().all()


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_activation_checkpointing_updates_once_and_has_the_same_gradients(use_reentrant: bool) -> None:
    torch.manual_seed(0)
    plain = CondConv2d(3, 4, 3, num_experts=2, routing="sigmoid(standardize=True)")
    plain(torch.randn(2, 3, 5, 5))
    recomputed, x = copy.deepcopy(plain), torch.randn(2, 3, 5, 5, requires_grad=True)
    plain(x).square().sum().backward()
    checkpoint(recomputed, x, use_reentrant=use_reentrant).square().sum().backward()
    for one, other in zip(plain.parameters(), recomputed.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)
    for one, other in zip(plain.buffers(), recomputed.buffers(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", ["constant", "external"])
def test_routing_that_reads_no_input_cannot_standardise_it(name: str) -> None:
    with pytest.raises(UsageError, match="`standardize` must be False for .*, which does not read its input, got True"):
        make_routing(f"{name}(standardize=True)", 4, 2)
