"""Which static layers experts can be made of: everything else is named with what it has, by `convert_` too."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

import condconv
from condconv import CondConv1d, CondConv2d, CondConvTranspose2d, CondLinear, convert_, select
from condconv.errors import UsageError
from condconv.nn import CONDITIONAL_CLASSES

X = torch.randn(2, 5, 9, 7, generator=torch.Generator().manual_seed(0))


class Halved(nn.Module):
    def forward(self, bias: Tensor) -> Tensor:
        return bias / 2


class Gated(nn.Conv2d):
    """Torch's convolution, with a tensor that a model may use."""

    def __init__(self, *arguments: Any, register: str) -> None:
        super().__init__(*arguments)
        gate = torch.ones(self.out_channels)
        if register == "buffer":
            self.register_buffer("gate", gate)
        elif register == "parameter":
            self.gate = nn.Parameter(gate)
        elif register == "module":
            self.gate = nn.Sigmoid()
        else:
            self.gate = [gate]


class Projecting(nn.Conv2d):
    def project(self, x: Tensor) -> Tensor:
        return x @ self.weight.flatten(1).T


class Counting(nn.Conv2d):
    @property
    def count(self) -> int:
        return self.weight.numel()


class Remembering(nn.Conv2d):
    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self.moved = True
        return super()._apply(fn, recurse)


class Marked(nn.Conv2d):
    """With nothing but data of its own, which the new layer gets."""

    stage = "late"

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.position, self.sizes = 3, {"in": [1, 2], "dtype": torch.float32}

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight)

    def extra_repr(self) -> str:
        return "marked"


def conv(change: Callable[[nn.Conv2d], Any] = lambda layer: None, kind: Any = nn.Conv2d, **options: Any) -> nn.Conv2d:
    layer = kind(5, 6, 3, **options)
    change(layer)
    return layer


def unlike_its_arguments(layer: nn.Conv2d) -> None:
    layer.weight = nn.Parameter(layer.weight.detach().sum(1, keepdim=True))


class Quantized(nn.Parameter):
    pass


ODD: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "pruned weight": (
        lambda: conv(functools.partial(prune.random_unstructured, name="weight", amount=0.3)),
        "its weight is computed from other tensors",
    ),
    "pruned bias": (
        lambda: conv(functools.partial(prune.random_unstructured, name="bias", amount=2)),
        "its bias is computed from other tensors",
    ),
    "parametrized bias": (
        lambda: conv(lambda layer: parametrize.register_parametrization(layer, "bias", Halved())),
        "its bias is computed from other tensors",
    ),
    "complex": (
        lambda: conv(dtype=torch.complex64),
        "its weight is torch.complex64, .*: experts are dense real floats",
    ),
    "subclass of parameter": (
        lambda: conv(lambda layer: setattr(layer, "weight", Quantized(layer.weight.detach()))),
        "its weight is a .*Quantized, which computes in its own way",
    ),
    "another shape": (
        lambda: conv(unlike_its_arguments),
        r"its weight has shape \(6, 1, 3, 3\), where its arguments say \(6, 5, 3, 3\): set them",
    ),
    "no weight": (lambda: conv(lambda layer: setattr(layer, "weight", None)), "it has no weight"),
    "buffer": (lambda: conv(kind=Gated, register="buffer"), r"it is a .*\.Gated that carries buffer 'gate'"),
    "parameter": (
        lambda: conv(kind=Gated, register="parameter"),
        "carries parameter 'gate', which the new layer would",
    ),
    "module": (lambda: conv(kind=Gated, register="module"), "carries module 'gate'"),
    "list of tensors": (lambda: conv(kind=Gated, register="list"), "carries attribute 'gate'"),
    "tensor put on it": (
        lambda: conv(lambda layer: setattr(layer, "scale", torch.ones(1))),
        "carries attribute 'scale'",
    ),
    "method": (lambda: conv(kind=Projecting), r"Projecting that carries method 'project'"),
    "property": (lambda: conv(kind=Counting), "carries method 'count'"),
    "method of Module": (lambda: conv(kind=Remembering), "carries method '_apply'"),
    "function put on it": (lambda: conv(lambda layer: setattr(layer, "act", torch.relu)), "carries method 'act'"),
    "tensor on a parameter": (
        lambda: conv(lambda layer: setattr(layer.bias, "master", torch.ones(6))),
        "carries 'master' on its bias",
    ),
    "compiled": (lambda: conv(lambda layer: layer.compile(backend="eager")), "it is compiled: convert it first, then"),
    "a name of condconv's": (
        lambda: conv(lambda layer: setattr(layer, "impl", "cudnn")),
        "it has an attribute `impl`, which",
    ),
    "backward hook": (lambda: conv(lambda layer: layer.register_full_backward_hook(print)), "it has backward hooks"),
    "hook after accumulating": (
        lambda: conv(lambda layer: layer.bias.register_post_accumulate_grad_hook(print)),
        "its parameters have hooks",
    ),
    "state hook": (
        lambda: conv(lambda layer: layer.register_load_state_dict_pre_hook(print)),
        "it has state-dict hooks",
    ),
}


@pytest.mark.parametrize("kind", list(ODD))
def test_an_odd_layer_is_refused_alone_and_left_in_a_model(kind: str) -> None:
    make, reason = ODD[kind]
    with pytest.raises(UsageError, match=f"`static` must be a layer that experts can be made of, got a .*: .*{reason}"):
        CondConv2d.from_conv(make())
    odd = make()
    model = nn.ModuleDict({"plain": nn.Conv2d(5, 5, 1), "odd": odd})
    names, attributes = list(model.state_dict()), dict(vars(odd))
    report = convert_(model, 3, layers=select.convs())
    assert [layer.name for layer in report.layers] == ["plain"]
    assert "odd" in report.refused
    assert model["odd"] is odd
    assert dict(vars(odd)) == attributes
    assert [name for name in names if name.startswith("odd")] == [n for n in model.state_dict() if n.startswith("odd")]


def test_plain_attributes_move_along() -> None:
    static: Any = conv(kind=Marked)
    static.note = ("kept", 2.5)
    static.weight.no_weight_decay = True
    for init in ("same_output", "random"):
        layer: Any = CondConv2d.from_conv(static, 2, init=init)
        assert (layer.stage, layer.position, layer.note) == ("late", 3, ("kept", 2.5))
        assert layer.sizes == {"in": [1, 2], "dtype": torch.float32}
        assert layer.experts.weight.no_weight_decay
        assert not hasattr(layer.experts.bias, "no_weight_decay")
    assert "num_experts=2" in repr(layer)


@pytest.mark.parametrize(
    "without",
    [
        lambda layer: parametrize.remove_parametrizations(parametrizations.weight_norm(layer), "weight"),
        lambda layer: parametrize.remove_parametrizations(parametrizations.spectral_norm(layer), "weight"),
        lambda layer: nn.utils.remove_spectral_norm(nn.utils.spectral_norm(layer)),
        lambda layer: prune.remove(prune.l1_unstructured(layer, "bias", 1), "bias"),
    ],
    ids=["weight_norm", "spectral_norm", "old spectral_norm", "pruned bias"],
)
def test_a_layer_converts_once_its_norm_is_removed(without: Callable[[nn.Module], nn.Module]) -> None:
    static = without(conv())
    torch.testing.assert_close(CondConv2d.from_conv(static, 3)(X), static(X), rtol=1e-4, atol=1e-5)
    model = nn.Sequential(static)
    assert len(convert_(model, 3, example_input=X).layers) == 1
    model.load_state_dict(model.state_dict())


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
def test_weight_norm_of_the_old_kind() -> None:
    normed = nn.utils.weight_norm(conv())
    with pytest.raises(UsageError, match="its weight is computed"):
        CondConv2d.from_conv(normed)
    static = nn.utils.remove_weight_norm(normed)
    torch.testing.assert_close(CondConv2d.from_conv(static, 3)(X), static(X), rtol=1e-4, atol=1e-5)


def test_hooks_of_users_beside_those_torch_left_are_still_seen() -> None:
    static = parametrize.remove_parametrizations(parametrizations.weight_norm(conv()), "weight")
    static.register_state_dict_post_hook(lambda *_: None)
    with pytest.raises(UsageError, match="it has state-dict hooks"):
        CondConv2d.from_conv(static)


@pytest.mark.parametrize("twin", list(CONDITIONAL_CLASSES))
def test_torchs_own_layers_of_each_class_convert(twin: type[nn.Module]) -> None:
    sizes = (4, 6) if twin is nn.Linear else (4, 6, 3)
    for bias in (True, False):
        CONDITIONAL_CLASSES[twin].from_static(twin(*sizes, bias=bias), 2)
        CONDITIONAL_CLASSES[twin].from_static(twin(*sizes, bias=bias).bfloat16(), 2)


@pytest.mark.parametrize(
    ("kind", "static"),
    [
        (CondLinear, nn.Linear(3, 4, dtype=torch.complex128)),
        (CondConv1d, nn.Conv1d(3, 4, 2, dtype=torch.complex64)),
        (CondConvTranspose2d, nn.ConvTranspose2d(3, 4, 2, dtype=torch.complex64)),
    ],
)
def test_the_imaginary_part_is_not_dropped(kind: Any, static: nn.Module) -> None:
    with pytest.raises(UsageError, match="its weight is torch.complex"):
        kind.from_static(static)


def test_a_lazy_layer_is_named() -> None:
    with pytest.raises(UsageError, match="its parameters do not exist yet"):
        condconv.CondConv2d.from_conv(nn.LazyConv2d(4, 3))
