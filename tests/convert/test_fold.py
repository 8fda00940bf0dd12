"""Folding batch norms of a whole model into its experts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from condconv import CondConv2d, convert_, create_model, fold_batch_norms_, select
from condconv.errors import UsageError

X = torch.randn(3, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Pair(nn.Module):
    """A conditional layer and a norm, for models that use them in ways of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = CondConv2d(3, 4, 3, num_experts=2), nn.BatchNorm2d(4)


def with_statistics(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    return model.eval()


@pytest.mark.parametrize("scope", ["layer", "block"])
def test_every_norm_after_a_conditional_layer_is_folded(scope: str) -> None:
    model = with_statistics(create_model("mobilenet_v1_cc_025_4e", output_stride=8, scope=scope).double())
    expected = model(X)
    folded = fold_batch_norms_(model, X[:1])
    assert len(folded) == 16
    assert folded[0] == ("blocks.3.0.conv_dw", "blocks.3.0.bn1")
    assert not isinstance(model.blocks[3][0].bn1, nn.BatchNorm2d)  # its activation is left
    assert isinstance(model.blocks[2][1].bn2, nn.BatchNorm2d)
    torch.testing.assert_close(model(X), expected)


def test_norm_with_activation_of_timm() -> None:
    timm = pytest.importorskip("timm")
    model = timm.create_model("mobilenetv3_small_050", num_classes=4).double()
    convert_(model, 3, layers=select.last_blocks(2), scope="block", example_input=X[:1])
    with_statistics(model)
    expected = model(X)
    folded = fold_batch_norms_(model, X[:1])
    assert len(folded) > 5
    assert {type(model.get_submodule(norm)) for _, norm in folded} == {nn.Sequential}
    torch.testing.assert_close(model(X), expected)


def test_a_norm_is_left_where_its_input_is_used_elsewhere() -> None:
    class Both(Pair):
        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            return y + self.norm(y)

    model = with_statistics(Both().double())
    expected = model(X)
    assert fold_batch_norms_(model, X) == []
    torch.testing.assert_close(model(X), expected, rtol=0, atol=0)


def test_a_norm_is_left_where_the_model_gives_its_input_too() -> None:
    class Features(Pair):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            y = self.conv(x)
            return {"before": y, "after": self.norm(y)}

    assert fold_batch_norms_(with_statistics(Features().double()), X) == []


def test_a_fold_that_changes_the_output_is_undone() -> None:
    class Looks(Pair):
        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.conv(x)) + self.conv.weight.sum()

    model = with_statistics(Looks().double())
    expected = model(X)
    with pytest.raises(UsageError, match="must compute with other layers what it did before, .* it has been restored"):
        fold_batch_norms_(model, X)
    torch.testing.assert_close(model(X), expected, rtol=0, atol=0)


def test_layers_that_run_twice_are_left() -> None:
    conv = CondConv2d(3, 3, 3, padding=1, num_experts=2)
    model = with_statistics(nn.Sequential(conv, nn.BatchNorm2d(3), conv, nn.BatchNorm2d(3)).double())
    assert fold_batch_norms_(model, X) == []


def test_compiled_parts_and_higher_order_operators_are_run_through() -> None:
    class Branches(Pair):
        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Conv2d(4, 4, 1)
            self.last.compile(fullgraph=True, backend="aot_eager")

        def forward(self, x: Tensor) -> Tensor:
            y = self.norm(self.conv(x))
            y = torch.cond(y.sum() > 0, lambda y: y + 1, lambda y: y - 1, (y,))
            return self.last(y)

    assert fold_batch_norms_(with_statistics(Branches().double()), X) == [("conv", "norm")]


def test_a_norm_of_timms_whose_activation_has_parameters() -> None:
    layers = pytest.importorskip("timm.layers")
    norm = layers.BatchNormAct2d(4, act_layer=nn.PReLU)
    model = with_statistics(nn.Sequential(CondConv2d(3, 4, 3), norm).double())
    expected = model(X)
    assert fold_batch_norms_(model, X[:1]) == [("0", "1")]
    torch.testing.assert_close(model(X), expected)
    unfit = nn.Sequential(
        CondConv2d(3, 4, 3), layers.BatchNormAct2d(4, track_running_stats=False, device="cpu")
    ).double()
    with pytest.raises(UsageError, match="`model` must .* folded, got '1': it has no running statistics"):
        fold_batch_norms_(unfit, X)


@pytest.mark.parametrize("learns", ["neither", "layer", "norm"])
def test_a_folded_layer_learns_if_what_it_is_made_of_did(learns: str) -> None:
    model = with_statistics(nn.Sequential(CondConv2d(3, 4, 3), nn.BatchNorm2d(4)))
    model.requires_grad_(False)
    if learns != "neither":
        model[learns == "norm"].requires_grad_(True)
    fold_batch_norms_(model, torch.randn(1, 3, 8, 8))
    assert model[0].weight.requires_grad == model[0].bias.requires_grad == (learns != "neither")
    assert model[0].folded_bias.requires_grad == (learns == "norm")


def test_hooks_that_would_be_lost_and_a_guess_that_fails_are_said() -> None:
    model = with_statistics(nn.Sequential(CondConv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 2)))
    with pytest.raises(ValueError, match=r"`example_input` must be given, got None: Sequential fails on a guess of"):
        fold_batch_norms_(model)
    model[1].register_full_backward_hook(lambda *_: None)
    with pytest.raises(UsageError, match="that can be folded, got '1': it has backward hooks"):
        fold_batch_norms_(model, torch.randn(1, 3, 8, 8))


def test_nothing_is_changed_where_one_norm_cannot_be_folded() -> None:
    layers = pytest.importorskip("timm.layers")
    first, norm = CondConv2d(3, 4, 3), nn.BatchNorm2d(4)
    model = nn.Sequential(first, norm, CondConv2d(4, 5, 1), layers.norm_act.SyncBatchNormAct(5)).eval()
    with pytest.raises(UsageError, match="got '3': it has a forward of its own, .*; put a torch.nn.BatchNorm in its"):
        fold_batch_norms_(model, torch.randn(1, 3, 8, 8))
    assert (model[0], model[1]) == (first, norm)
