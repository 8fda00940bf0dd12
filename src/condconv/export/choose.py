"""Choose the form of each layer: one table per runtime, and the limits of each form."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from condconv.errors import UsageError, shown, shown_name
from condconv.export import forms
from condconv.export.geometry import Geometry
from condconv.nn import CondConv2d, ConditionalLayer, CondLinear, ConstantRouting, MixedExperts
from condconv.nn.block_routing import routing_functions
from condconv.nn.choice import choose_named
from condconv.nn.conditional import conditional_layers


@dataclass(frozen=True)
class ExportRule:
    """A row of a runtime's table; the first that fits a layer is taken.

    Attributes:
        kind: The kind of layers, as in `kind_of`.
        form: A key of `FORMS`.
        why: The reason in a few words, for the report.
        when: A further condition.
    """

    kind: str
    form: str
    why: str
    when: Callable[[Any], bool] = lambda layer: True


@dataclass(frozen=True)
class Choice:
    """The form of one layer.

    Attributes:
        layer: Its name in the model.
        kind: The kind of layer, as in `kind_of`.
        form: A key of `FORMS`, or `"static"` if the routing weights are the same for every input.
        why: The reason, in a few words.
        unfolded: Why a batch norm after it is not folded into its experts, after the name of the module with the
            reason; `None` if there is no such norm.
    """

    layer: str
    kind: str
    form: str
    why: str
    unfolded: tuple[str, str] | None = None


def has_kernels(layer: Any) -> bool:
    """Return whether the experts of a layer are whole kernels, which a form can hold."""
    return isinstance(layer.experts, MixedExperts) and layer.experts.parts is None


def kind_of(layer: nn.Module) -> str:
    """Return `"1x1"`, `"depthwise"`, `"dense"` (grouped ones too), `"linear"` or `"other"`."""
    if isinstance(layer, CondLinear):
        return "linear"
    if not isinstance(layer, CondConv2d):
        return "other"
    if layer.kernel_size == (1, 1):
        return "1x1"
    return "depthwise" if Geometry.of(layer).is_depthwise else "dense"


FORMS: dict[str, Callable[[Any], nn.Module]] = {
    "bmm": lambda layer: forms.BmmLinear(layer) if isinstance(layer, CondLinear) else forms.Bmm(layer),
    "esum": forms.Esum,
    "grouped": forms.Grouped,
    "own": forms.Own,
    "scan": forms.Scan,
    "shift": forms.Shift,
    "unfold": forms.Unfold,
}

# Times beside are those of whole layers or networks over their static twins in the same runtime, on one x86 thread.
_PRODUCTS = ExportRule("1x1", "bmm", "a product of matrices is all a 1 x 1 convolution is")
_LINEAR = ExportRule("linear", "bmm", "a product of matrices")
_OTHER = ExportRule("other", "esum", "the form that every kind of layer has")
_STATIC_KERNELS = ExportRule("depthwise", "esum", "static kernels are fast, computed ones fall back")
_COMPILED = (
    _PRODUCTS,
    ExportRule("depthwise", "shift", "the compiler makes one loop of all taps"),
    ExportRule("dense", "unfold", "patches and one product; the compiler fuses the copy"),
    _LINEAR,
    _OTHER,
)
_SHIFTED = (
    _PRODUCTS,
    _STATIC_KERNELS,
    # ExecuTorch: 1.5 to 1.6 times the static layer; unfold: 19 to 87 times.
    ExportRule("dense", "shift", "products run in the delegate, patches and computed kernels do not"),
    _LINEAR,
    _OTHER,
)
TABLES: dict[str, tuple[ExportRule, ...]] = {
    "torch-export": _COMPILED,
    "aoti": _COMPILED,
    "onnx": (
        _PRODUCTS,
        ExportRule(
            "depthwise", "esum", "few experts: static kernels are faster than a loop", lambda x: x.num_experts <= 4
        ),
        ExportRule("depthwise", "esum", "a large kernel is slow if computed", lambda x: max(x.kernel_size) >= 5),
        ExportRule("depthwise", "scan", "many experts: a loop costs less than a convolution each"),
        ExportRule("dense", "scan", "a loop of real convolutions; patches are 19 times slower or more"),
        _LINEAR,
        _OTHER,
    ),
    "openvino": (
        _PRODUCTS,
        ExportRule("depthwise", "scan", "a loop of real convolutions"),
        ExportRule("dense", "scan", "a loop of real convolutions"),
        _LINEAR,
        _OTHER,
    ),
    "executorch": _SHIFTED,
    "litert": _SHIFTED,
    "coreml": _SHIFTED,
}


ROUTED_IN_4D = ("executorch", "litert", "coreml", "openvino")
"""Runtimes that need routing functions in four dimensions.

Delegates take no others. OpenVINO merges a standardization into the mean before it, along a wrong dimension in others.
"""


def why_not_form(form: str, layer: Any, batch: int | None) -> str | None:
    """Return why a layer cannot be written in a form, or `None`.

    Args:
        form: A key of `FORMS`.
        layer: A conditional layer.
        batch: The fixed batch size of the file, or `None` if it is dynamic.
    """
    if form == "own" or not has_kernels(layer):
        wanted = "own" if not has_kernels(layer) else "another form"
        return None if form == wanted else f"its experts are {type(layer.experts).__name__}: take {wanted}"
    if form == "esum":
        return None
    kind = kind_of(layer)
    if kind == "other":
        return "layers that are not two-dimensional convolutions or linear have one form; take 'esum'"
    if kind == "linear":
        return None if form == "bmm" else "a linear layer has two forms; take 'bmm' or 'esum'"
    if form == "bmm" and kind != "1x1":
        return "only a 1 x 1 kernel is a product of matrices: take 'unfold' or 'shift'"
    if form == "grouped" and batch is None:
        return "the number of groups would hold the example's batch size: take another form or dynamic_batch=False"
    return None


def choose(
    model: nn.Module, format: str, batch: int | None, overrides: Mapping[str, str] | None = None
) -> dict[str, Choice]:
    """Return the form of each conditional layer of a model, by its name.

    Args:
        model: In evaluation mode.
        format: A key of `TABLES`.
        batch: The fixed batch size of the file, or `None` if it is dynamic.
        overrides: Forms by patterns of the layers' names, as in a `LayerChoice`; the last match decides.

    Raises:
        UsageError: `overrides` is not a mapping, a pattern matches no layer, a form is unknown, or the layer cannot be
            written in it.
    """
    if overrides is not None and not isinstance(overrides, Mapping):
        kind = type(overrides).__name__
        raise UsageError(f"`forms` must map patterns of layers' names to forms, got a {kind}: give a dictionary")
    layers = conditional_layers(model)
    asked: dict[str, str] = {}
    for pattern, form in (overrides or {}).items():
        if not isinstance(form, str) or form not in FORMS:
            raise UsageError(
                f"`forms` must name one of {', '.join(FORMS)}, got {shown(form)} for {shown(pattern)}: take one of them"
            )
        chosen = choose_named(layers, pattern, argument="forms", kind="conditional layers of the network")
        asked |= dict.fromkeys(chosen, form)
    routings = routing_functions(model)
    choices = {}
    for name, layer in layers.items():
        if isinstance(routings.get(layer.routing_fn), ConstantRouting):
            choices[name] = Choice(name, kind_of(layer), "static", "its routing weights are constant")
            continue
        choices[name] = _choice(name, layer, format, asked.get(name))
        reason = why_not_form(choices[name].form, layer, batch)
        if reason is not None:
            raise UsageError(
                f"`forms` must fit the layers, got {choices[name].form!r} for {shown_name(name)}: {reason}"
            )
    return choices


def _choice(name: str, layer: ConditionalLayer, format: str, asked: str | None) -> Choice:
    kind = kind_of(layer)
    if asked is not None:
        return Choice(name, kind, asked, "as asked")
    if not has_kernels(layer):
        return Choice(name, kind, "own", "an ordinary layer, with small routed ones around it")
    if layer.num_experts == 1:
        return Choice(name, kind, "esum", "one expert: a static layer and a factor")
    rule = next(rule for rule in TABLES[format] if rule.kind == kind and rule.when(layer))
    return Choice(name, kind, rule.form, rule.why)
