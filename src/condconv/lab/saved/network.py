"""The network of a run: built by name for the data at hand, and tried on one image before any training."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from condconv.counting.tracing import evaluating
from condconv.errors import UsageError, few, first_line, shown, shown_name
from condconv.lab.config import TrainConfig
from condconv.lab.rules import EXPERTS
from condconv.nn import RoutingFunction
from condconv.nn.methods import parse_method
from condconv.weights import load_pretrained

_log = logging.getLogger(__name__)

if TYPE_CHECKING:
    from condconv.models import ModelInfo

_OF_EXPERTS = ("routing", "experts", "scope")
_OF_THE_BEGINNING = ("init", "expert_spread", "pretrained_cfg")

NOT_BUILT = (
    *(ValueError, TypeError, LookupError, AssertionError, AttributeError),
    *(ArithmeticError, OSError, RuntimeError),
)
"""What a builder raises for options that it cannot use: not all of timm's check them."""

Build = Callable[[TrainConfig, int, int], nn.Module]
"""`build(config, num_classes, in_chans)` returns a network, `[B, C, S, S]` to `[B, num_classes]`."""


def build_from_zoo(config: TrainConfig, num_classes: int, in_chans: int) -> nn.Module:
    """Build the named network of `condconv.models`.

    Raises:
        UsageError: The name or an option is unknown, or the weights are not within reach.
    """
    from condconv.models import create_model

    check_name(config.model)
    try:
        return create_model(
            config.model,
            num_classes=num_classes,
            in_chans=in_chans,
            pretrained=config.pretrained,
            **config.model_options,
        )
    except NOT_BUILT as error:
        raise cannot_be_built(config, _given(config), error) from error


def cannot_be_built(config: TrainConfig, given: str, error: Exception) -> UsageError:
    """Return the error for a network that cannot be built with its options."""
    name = "model_options" if config.model_options else "model"
    return UsageError(
        f"`{name}` must be what {config.model} can be built with, got {given} ({first_line(error)}): change what does "
        "not fit, or leave it out"
    )


def check_name(model: str) -> None:
    """Check that `condconv.models` has a network of this name.

    Raises:
        UsageError: It has none.
    """
    from condconv.models.names import parse_name

    experts = parse_name(model, "model").num_experts
    if experts is not None:  # each takes time when a network is built, even where it takes no memory
        EXPERTS.check("num_experts", experts)


def _given(config: TrainConfig) -> str:
    """Return the options that the user gave, in words, without those that were resolved."""
    resolved = resolved_options(replace(config, model_options={}), config.image_size or 224)
    given = {name: value for name, value in config.model_options.items() if resolved.get(name) != value}
    options = [f"{name}={shown(value)}" for name, value in given.items()]
    return few((*options, *(["pretrained"] if config.pretrained else ())), most=8) or "these classes"


def start_(network: nn.Module, config: TrainConfig) -> None:
    """Give a new network the weights it starts from and its expert dropout, in place.

    Raises:
        UsageError: The file does not fit, or the network has no experts to leave out.
    """
    if config.init_from is not None:
        for note in load_pretrained(network, config.init_from, skip=config.init_skip or None).notes:
            _log.warning("%s: %s", config.init_from, note)
    if config.expert_dropout:
        routing = [module for module in network.modules() if isinstance(module, RoutingFunction)]
        if not routing:
            raise UsageError(
                f"`expert_dropout` must be 0 for a network without experts, got {config.expert_dropout} for "
                f"{config.model}: leave it out"
            )
        for each in routing:
            each.expert_dropout = config.expert_dropout


def default_options(config: TrainConfig, image_size: int) -> dict[str, object]:
    """Return the network's options, with a stride that leaves small images a last map of at least 4 pixels.

    Networks made for 224 pixels shrink their input 32 times, which would leave nothing of a 32-pixel image.
    """
    options = dict(config.model_options)
    info = _info(config)
    if info is not None and "output_stride" not in options and image_size < 128:
        fitting = [stride for stride in info.output_strides if image_size >= 4 * stride]
        options["output_stride"] = max(fitting, default=min(info.output_strides))
    return options


def start_options(config: TrainConfig) -> dict[str, Any]:
    """Return how a network of the run's method begins, unless the settings say it; `resolved_options` leaves that out.

    Raises:
        UsageError: There is no such method.
    """
    init = None if config.method is None else parse_method(config.method)[1].init
    return {} if init is None else {"init": init}


def resolved_options(config: TrainConfig, image_size: int, updates: int = 0) -> dict[str, Any]:
    """Return the options that decide what a trained network computes, including current defaults.

    A method becomes the experts, the routing and the scope that it is made of.

    A checkpoint keeps them, so that its network stays what it is when a default changes. What says only how a network
    begins is left out: a checkpoint has its weights. Options of a network that is not in the zoo stay as they are.

    Args:
        config: The settings of the run.
        image_size: Side of the images, in pixels.
        updates: Of the whole run: the temperature of a method falls over a tenth of them, unless it has its own number.

    Raises:
        UsageError: The method does not go with the network or the other options.
    """
    from condconv.models import create_model

    options = default_options(config, image_size)
    info = _info(config)
    if "method" in options:
        raise UsageError(
            f"`model_options` must not have a method, got {shown(options['method'])}: give it as a setting, --method"
        )
    if config.method is not None:
        options = {**_of_method(config, updates), **options}
    if info is None:
        return options
    options.setdefault("output_stride", max(info.output_strides))
    if info.num_experts is not None:  # only networks with experts take the others
        scope = inspect.signature(create_model).parameters["scope"].default
        options = {"routing": info.routing, "experts": info.experts, "scope": scope, **options}
    return {name: value for name, value in options.items() if name not in _OF_THE_BEGINNING}


def _of_method(config: TrainConfig, updates: int) -> dict[str, Any]:
    """Return the options that a method is."""
    from condconv.models.names import parse_name
    from condconv.models.recipe import Recipe

    text = str(config.method)
    name, method, _ = parse_method(text)
    if method.is_annealed and updates and "(" not in text:
        text = f"{name}(annealing_steps={max(1, updates // 10)})"
    model = parse_name(str(config.model_options.get("base", config.model)), "model")
    given = {key: config.model_options[key] for key in _OF_EXPERTS if key in config.model_options}
    recipe = Recipe(method=text, **given)
    recipe.check(model)
    resolved = recipe.resolved(model)
    return {key: getattr(resolved, key) for key in _OF_EXPERTS}


def _info(config: TrainConfig) -> ModelInfo | None:
    """Return the registry's entry of a network, or None; a network with branches is that of the `base` they are of."""
    from condconv.models import get_model_info

    try:
        return get_model_info(str(config.model_options.get("base", config.model)))
    except ValueError:
        return None  # the name is reported where the network is built


def check_output(network: nn.Module, num_classes: int, in_chans: int, image_size: int) -> None:
    """Run two empty images through the network.

    Raises:
        UsageError: The image is too small for the network, or its output is not one number per class.
    """
    try:
        with evaluating(network), torch.inference_mode():
            output = network(torch.zeros(2, in_chans, image_size, image_size))
    except (RuntimeError, ValueError) as error:  # ValueError: of conditional layers
        raise UsageError(
            f"`image_size` must suit the network, got {image_size} ({first_line(error)}): take a larger one, "
            "or a smaller output_stride"
        ) from error
    shape = list(output.shape) if isinstance(output, Tensor) else f"a {type(output).__name__}"
    if shape != [2, num_classes]:
        raise UsageError(
            f"`model` must give one number per class, [2, {num_classes}] for two images, got {shape}: build it with "
            "num_classes equal to the number of class folders, and with no option that changes what it returns"
        )


def load_weights_(
    network: nn.Module, weights: Mapping[str, Tensor], path: str | Path, *, compared: bool = False
) -> None:
    """Copy a checkpoint's weights into a network, in place, all or none.

    Args:
        network: Network to fill.
        weights: Its state dict, as read from a file.
        path: That file, for the message.
        compared: Whether names and shapes are known to match.

    Raises:
        UsageError: Names or shapes do not match; the message lists the first of each.
    """
    own = network.state_dict()
    if not compared:
        check_shapes(shapes(own), shapes(weights), path)
    other = [
        f"{name} ({each.dtype}, not {own[name].dtype})" for name, each in weights.items() if not _suits(each, own[name])
    ]
    if other:
        raise UsageError(
            f"`checkpoint` must hold numbers of the network's kind, got {shown_name(path)} with {few(other, most=3)}: "
            "take another copy, or train again"
        )
    network.load_state_dict(dict(weights))


def _suits(found: Tensor, own: Tensor) -> bool:
    """Return whether copying loses no more than digits: neither an imaginary part, nor all but whole numbers."""
    return found.is_complex() == own.is_complex() and found.is_floating_point() == own.is_floating_point()


def shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor by its name."""
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def check_shapes(own: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]], path: str | Path) -> None:
    """Check that a checkpoint has the tensors of its network.

    Args:
        own: Names and shapes of the network.
        found: Those of the file.
        path: That file, for the message.

    Raises:
        UsageError: They differ; the message lists the first of each kind.
    """
    problems = {
        "it lacks": [name for name in own if name not in found],
        "the network has no": [name for name in found if name not in own],
        "of another shape": [
            f"{name} {found[name]} (the network's: {own[name]})"
            for name in own
            if name in found and own[name] != found[name]
        ],
    }
    told = [f"{what} {few(names, most=3)}" for what, names in problems.items() if names]
    if told:
        raise UsageError(
            f"`checkpoint` must hold the weights of this network, got {shown_name(path)}: {'; '.join(told)}: "
            "build the network with the checkpoint's own model name and options"
        )
