"""The network of a run: built by name for the data at hand, and tried on one image before any training."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from condconv.errors import UsageError, few, first_line
from condconv.nn import RoutingFunction
from condconv.tracing import evaluating
from condconv.train.config import TrainConfig
from condconv.weights import load_pretrained

_log = logging.getLogger(__name__)

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
    except (ValueError, TypeError, LookupError, AssertionError, OSError, RuntimeError) as error:
        raise UsageError(
            f"`model` {config.model} cannot be built with {_given(config)}: {first_line(error)}"
        ) from error


def check_name(model: str) -> None:
    """Check that `condconv.models` has a network of this name.

    Raises:
        UsageError: It has none.
    """
    from condconv.models import get_model_info

    try:
        get_model_info(model)
    except ValueError as error:
        raise UsageError(f"`model` cannot be built: {error}; 'condconv models' lists the names") from error


def _given(config: TrainConfig) -> str:
    options = [f"{name}={value!r}" for name, value in config.model_options.items()]
    return ", ".join((*options, *(["pretrained"] if config.pretrained else ()))) or "these classes"


def start_(network: nn.Module, config: TrainConfig) -> None:
    """Give a new network the weights it starts from and its expert dropout, in place.

    Raises:
        UsageError: The file does not fit, or the network has no experts to leave out.
    """
    if config.init_from is not None:
        for note in load_pretrained(network, config.init_from, skip=config.init_skip or ()).notes:
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
    from condconv.models import get_model_info

    options = dict(config.model_options)
    if "output_stride" not in options and image_size < 128:
        try:
            strides = get_model_info(config.model).output_strides
        except ValueError:
            return options  # the name is reported where the network is built
        fitting = [stride for stride in strides if image_size >= 4 * stride]
        options["output_stride"] = max(fitting, default=min(strides))
    return options


def check_output(network: nn.Module, num_classes: int, in_chans: int, image_size: int) -> None:
    """Run two empty images through the network.

    Raises:
        UsageError: The image is too small for the network, or its output is not one number a class.
    """
    try:
        with evaluating(network), torch.inference_mode():
            output = network(torch.zeros(2, in_chans, image_size, image_size))
    except (RuntimeError, ValueError) as error:  # ValueError: of conditional layers
        raise UsageError(
            f"`image_size` must suit the network, got {image_size} ({first_line(error)}): take a larger one, "
            "or a smaller output_stride"
        ) from error
    if tuple(output.shape) != (2, num_classes):
        raise UsageError(
            f"`model` must give one number a class, [2, {num_classes}] for two images, got "
            f"{list(output.shape)}: "
            "build it with num_classes equal to the number of class folders"
        )


def load_weights_(network: nn.Module, weights: Mapping[str, Tensor], path: str | Path) -> None:
    """Copy a checkpoint's weights into a network, in place, all or none.

    Args:
        network: Network to fill.
        weights: Its state dict, as read from a file.
        path: That file, for the message.

    Raises:
        UsageError: Names or shapes do not match; the message lists the first of each.
    """
    own = network.state_dict()
    problems = {
        "it lacks": [name for name in own if name not in weights],
        "the network has no": [name for name in weights if name not in own],
        "of another shape": [
            f"{name} {tuple(weights[name].shape)} (the network's: {tuple(own[name].shape)})"
            for name in own
            if name in weights and own[name].shape != weights[name].shape
        ],
    }
    found = [f"{what} {few(names, most=3)}" for what, names in problems.items() if names]
    if found:
        raise UsageError(
            f"`checkpoint` must hold the weights of this network, got {path}: {'; '.join(found)}: "
            "build the network with the checkpoint's own model name and options"
        )
    network.load_state_dict(dict(weights))
