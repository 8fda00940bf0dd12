"""Weights saved in parts by torch's own functions are those that its modules compute."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from condconv.errors import UsageError
from condconv.weights import load_state_dict

from .networks import assert_same_logits, randomise, small

nn_utils: Any = nn.utils


def old_weight_norm(layer: nn.Module, **options: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        nn_utils.weight_norm(layer, **options)


# What is done to a layer, and what the report calls it.
FORMS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "weight norm": (parametrizations.weight_norm, "weight norm"),
    "weight norm of inputs": (lambda layer: parametrizations.weight_norm(layer, dim=1), "weight norm"),
    "weight norm of the whole": (lambda layer: parametrizations.weight_norm(layer, dim=None), "weight norm"),
    "old weight norm": (old_weight_norm, "weight norm"),
    "old weight norm of the whole": (lambda layer: old_weight_norm(layer, dim=None), "weight norm"),
    "spectral norm": (parametrizations.spectral_norm, "spectral norm"),
    "old spectral norm": (nn_utils.spectral_norm, "spectral norm"),
    "pruning": (lambda layer: prune.l1_unstructured(layer, "weight", 0.4), "pruning"),
}


def scaled_(model: nn.Module) -> None:
    """Change what a parametrization starts from, so that parts and weight differ."""
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if name.endswith(("_g", "original0", "_orig", "original")):
                tensor.mul_(torch.rand_like(tensor) + 0.5)


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod."])
@pytest.mark.parametrize("form", FORMS)
def test_parts_give_the_weight_of_torchs_module(form: str, prefix: str) -> None:
    apply, name = FORMS[form]
    source = randomise(small())
    layers = [source.stem, source.blocks[1].pointwise, source.classifier]
    for layer in layers:
        apply(layer)
    source = source.double()
    scaled_(source)
    source.train()(torch.randn(2, 3, 32, 32, dtype=torch.float64))  # a step of the power method, and statistics
    model = small(3).double()
    report = load_state_dict(model, {prefix + name: value for name, value in source.state_dict().items()})
    weights = ", ".join(f"{prefix}{each}.weight" for each in ("stem", "blocks.1.pointwise", "classifier"))
    assert f"computed from the parts of {name}: {weights}" in report.notes
    source.eval()(torch.randn(1, 3, 32, 32, dtype=torch.float64))
    torch.testing.assert_close(model.stem.weight, source.stem.weight, rtol=1e-12, atol=0)
    assert_same_logits(model, source, (2, 32))


@pytest.mark.parametrize("apply", [parametrizations.spectral_norm, nn_utils.spectral_norm])
@pytest.mark.parametrize("channels", [(4, 4), (4, 6)])
def test_spectral_norm_of_transposed_convolutions(apply: Callable[[Any], Any], channels: tuple[int, int]) -> None:
    """Its rows are the second dimension, which a kernel with as many inputs as outputs does not show by its shape."""
    source = apply(nn.ConvTranspose2d(*channels, 3)).eval()
    source(torch.randn(1, channels[0], 5, 5))
    model = nn.ConvTranspose2d(*channels, 3)
    load_state_dict(nn.Sequential(model), {f"0.{name}": value for name, value in source.state_dict().items()})
    torch.testing.assert_close(model.weight, source.weight)


def test_the_oldest_spectral_norm() -> None:
    """Torch saved one vector, and the weight itself; without that, a step of the power method gives the other."""
    source = nn_utils.spectral_norm(nn.Conv2d(3, 5, 3), n_power_iterations=50)
    source(torch.randn(1, 3, 5, 5))
    state = {f"0.{name}": value for name, value in source.state_dict().items() if name != "weight_v"}
    model = nn.Sequential(nn.Conv2d(3, 5, 3))
    load_state_dict(model, state)
    torch.testing.assert_close(model[0].weight, source.weight, rtol=1e-4, atol=0)
    load_state_dict(model, state | {"0.weight": torch.full((5, 3, 3, 3), 2.0)})
    assert bool((model[0].weight == 2).all())


def test_one_output_and_half_precision() -> None:
    source = parametrizations.weight_norm(nn.Conv2d(3, 1, 1)).half()
    model = nn.Sequential(nn.Conv2d(3, 1, 1).half())
    load_state_dict(model, {f"0.{name}": value for name, value in source.state_dict().items()})
    assert torch.equal(model[0].weight, source.weight)


def test_parts_that_do_not_go_together_are_named() -> None:
    wrong = {"0.bias": torch.zeros(4), "0.weight_v": torch.ones(4, 3, 3, 3)}
    for parts in (
        {"0.weight_g": torch.ones(3, 1, 1, 1)},
        {"0.weight_g": torch.ones(4, 1, 1, 1, dtype=torch.float16)},
        {"0.weight_g": torch.ones(4, 1, 1, 1).char(), "0.weight_v": torch.ones(4, 3, 3, 3).char()},
        {"0.weight_orig": torch.ones(4, 3, 3, 3), "0.weight_u": torch.ones(4), "0.weight_v": torch.ones(26)},
        {"0.weight_orig": torch.ones(4, 3, 3, 3)},
    ):
        with pytest.raises(UsageError, match="its '0.weight' is computed by a parametrization that is not known here"):
            load_state_dict(nn.Sequential(nn.Conv2d(3, 4, 3)), wrong | parts)


def test_recurrent_weights_have_names_of_their_own() -> None:
    source = nn.LSTM(3, 4)
    old_weight_norm(source, name="weight_hh_l0")
    model = nn.LSTM(3, 4)
    load_state_dict(model, source.state_dict())
    assert torch.equal(model.weight_hh_l0, source.weight_hh_l0)


def test_parts_of_the_network_itself_stay_parts() -> None:
    source, model = (nn.Sequential(parametrizations.weight_norm(nn.Conv2d(3, 4, 3))) for _ in range(2))
    report = load_state_dict(model, {f"module.{name}": value for name, value in source.state_dict().items()})
    assert torch.equal(model[0].weight, source[0].weight)
    assert not report.notes


class Doubled(nn.Module):
    """A parametrization of one's own."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * x


def doubled(layer: nn.Module) -> None:
    parametrize.register_parametrization(layer, "weight", Doubled())


@pytest.mark.parametrize("apply", [parametrizations.orthogonal, doubled])
def test_other_parametrizations_are_named(apply: Callable[[Any], Any]) -> None:
    source = small()
    apply(source.classifier)
    with pytest.raises(
        UsageError,
        match=r"its 'classifier.weight' is computed by a parametrization that is not known here, from original.*: call "
        r"torch.nn.utils.parametrize.remove_parametrizations\(module, 'weight'\) for 'classifier'",
    ):
        load_state_dict(small(2), source.state_dict())
    load_state_dict(small(2), source.state_dict(), skip=["classifier.*"])


def test_names_that_only_look_so() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale_g = nn.Parameter(torch.rand(3))
            self.scale_v = nn.Parameter(torch.rand(2, 5))

    source, model = nn.Sequential(Own()), nn.Sequential(Own())
    load_state_dict(model, source.state_dict())
    assert torch.equal(model[0].scale_g, source[0].scale_g)
    with pytest.raises(UsageError, match="the network has no scale_g, scale_v"):
        load_state_dict(nn.Sequential(nn.Conv2d(3, 3, 1)), Own().state_dict())
