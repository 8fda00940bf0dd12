"""Methods by name, published ones and ours: the experts and the routing that each is made of."""

from __future__ import annotations

from typing import Any, NamedTuple

from condconv.errors import UsageError, shown
from condconv.nn.calls import parse_call
from condconv.nn.experts.build import ExpertsOption, resolve_experts
from condconv.nn.factory import Routing
from condconv.ops.scalars import one_of, positive

ANNEALING_STEPS = 10_000
"""Optimizer updates until an annealed softmax has its last temperature, if `annealing_steps` is not given."""
OURS = "this package"
"""The source of methods that are a store of this package, with its name and its options."""
_ANNEALED = "temperature=30, final_temperature=1, annealing_steps={annealing_steps}"


class Method(NamedTuple):
    """Experts and routing that belong together.

    Attributes:
        experts: As in the layers.
        routing: As in the layers; with a place for `annealing_steps` if its temperature falls.
        num_experts: E, if it is not given.
        scope: Of the networks of `create_model`; layers with a gain per channel are routed one by one.
        one_kernel: Whether it has no more than one kernel.
        source: Its paper, and the code that it was compared with; `OURS` for ours.
        init: Of the networks of `create_model`; `None` for that of the family.
    """

    experts: str
    routing: str
    num_experts: int
    scope: str
    one_kernel: bool
    source: str
    init: str | None = None

    @property
    def is_annealed(self) -> bool:
        """Whether its temperature falls in training."""
        return "{annealing_steps}" in self.routing


METHODS: dict[str, Method] = {
    "condconv": Method("dense", "sigmoid", 8, "block", False, "arXiv:1904.04971, tensorflow/tpu"),
    "dyconv": Method(
        "dense",
        f"softmax(hidden_ratio=1/4, {_ANNEALED})",
        4,
        "layer",
        False,
        "arXiv:1912.03458, kaijieshi7/Dynamic-convolution-Pytorch (the authors published none)",
    ),
    "odconv": Method(
        "modulated(inputs=True, taps=True)",
        f"softmax(hidden_ratio=1/16, least_hidden=16, standardize=True, {_ANNEALED})",
        1,
        "layer",
        False,
        "arXiv:2209.07947, OSVAI/ODConv",
    ),
    "dcd": Method(
        "decomposed",
        "sigmoid(hidden_ratio=1/16, least_hidden=4)",
        1,
        "layer",
        True,
        "arXiv:2103.08756, liyunsheng13/dcd",
    ),
    "weightnet": Method(
        "modulated(input_blocks=2)",
        "sigmoid(hidden_ratio=1/16, least_hidden=16)",
        1,
        "layer",
        True,
        "arXiv:2007.11823, megvii-model/WeightNet",
    ),
    "se": Method(
        "modulated",
        "sigmoid(hidden_ratio=1/16, least_hidden=8)",
        1,
        "layer",
        True,
        "arXiv:1709.01507",
    ),
    "deltas": Method("deltas", "sigmoid(standardize=True)", 8, "block", False, OURS, "same_output"),
    "shared": Method("shared", "sigmoid(standardize=True)", 8, "block", False, OURS, "same_output"),
}
"""Methods by name, for `method=` of layers, `convert_` and `create_model`; `docs/methods.md` has a card for each."""


class Resolved(NamedTuple):
    """What layers are made of: the arguments of these names."""

    num_experts: int
    routing: Routing
    experts: ExpertsOption


def resolve_method(
    method: str | None,
    num_experts: int | None,
    routing: Routing | None,
    experts: ExpertsOption | None,
    default: Resolved,
) -> Resolved:
    """Return what layers are made of: what is given, and for the rest what a method has, or the default.

    Args:
        method: A key of `METHODS`, also with options as in `"dyconv(annealing_steps=5000)"` or `"deltas(scale=0.1)"`;
            or `None`.
        num_experts: E, or `None`.
        routing: As in the layers, or `None`; not with a method.
        experts: As in the layers, or `None`; not with a method.
        default: For what neither has.

    Raises:
        UsageError: There is no such method or option, or an argument does not go with it.
    """
    if method is None:
        return Resolved(
            positive("num_experts", default.num_experts if num_experts is None else num_experts),
            default.routing if routing is None else routing,
            default.experts if experts is None else experts,
        )
    name, found, steps = parse_method(method)
    for argument, value in (("routing", routing), ("experts", experts)):
        if value is not None:
            raise UsageError(
                f"`{argument}` must not be given with a method, got {shown(value)} with {shown(method)}: a method is "
                "both experts and routing, so give it or these two"
            )
    number = positive("num_experts", found.num_experts if num_experts is None else num_experts)
    if found.one_kernel and number != 1:
        raise UsageError(
            f"`num_experts` must be 1 for the method {name!r}, which has one kernel, got {number}: leave it out"
        )
    return Resolved(number, found.routing.format(annealing_steps=steps), found.experts)


def parse_method(text: Any) -> tuple[str, Method, int]:
    """Return the name of a method, the method with its options, and its annealing steps.

    Raises:
        UsageError: There is no such method, or it does not have an option.
    """
    if not isinstance(text, str):
        raise UsageError(f"`method` must be a name, got {shown(text)}: names are {', '.join(METHODS)}")
    name, options = parse_call(text, "method")
    method = METHODS[one_of("method", name, METHODS, "or give experts and routing")]
    if method.source == OURS:
        resolve_experts(text)
        return name, method._replace(experts=text.strip()), ANNEALING_STEPS
    known = ("annealing_steps",) if method.is_annealed else ()
    if unknown := [option for option in options if option not in known]:
        raise UsageError(
            f"`method` must have options of {name} only, got {shown(unknown[0])}: it has {', '.join(known) or 'none'}"
        )
    return name, method, positive("annealing_steps", options.get("annealing_steps", ANNEALING_STEPS))
