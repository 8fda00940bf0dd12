"""The network of a checkpoint, built again: compared with the file before memory is allocated, then filled."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from condconv.convert import exchange_experts_, make_static_
from condconv.errors import TrainingError, UsageError, few, first_line, shown_name
from condconv.files.checkpoint_format import StoredCheckpoint, below, open_checkpoint
from condconv.lab.saved import network as networks
from condconv.lab.saved.checkpoint import Checkpoint, describe, with_weights
from condconv.nn.conditional import routed_buffers

_STATISTIC = "running_"  # of batches; other buffers may have their reasons to be infinite, as masks have
_MOST_KEPT = 16
"""Numbers that an optimizer may keep of each weight; those of timm keep at most four."""


def load_trained(path: str | Path, *, build: networks.Build = networks.build_from_zoo) -> tuple[Checkpoint, nn.Module]:
    """Read a checkpoint for use, and rebuild its network, on the CPU, in eval mode.

    Nothing large is read or built before the network that the file names is known to be the one whose weights it holds:
    neither can a small file ask for a large network, nor one with holes for more memory than its network takes.

    Args:
        path: A `best.safetensors` or `last.safetensors`.
        build: Builds the network from the run's settings; for networks of your own.

    Returns:
        The checkpoint, without the optimizer's state, and its network; averaged weights if it has them.

    Raises:
        UsageError: The file is missing, damaged, not a checkpoint, of another version, or of another network
            than it says.
        TrainingError: The network has diverged.
    """
    stored = open_checkpoint(path, "classifier")
    described = describe(stored)
    own = planned_shapes(described, path, build)
    check_stored(stored, own)
    checkpoint = with_weights(described, stored)
    return checkpoint, _fill(checkpoint, path, build, compared=own is not None)


def check_stored(stored: StoredCheckpoint, own: Mapping[str, tuple[int, ...]] | None) -> None:
    """Check that a file has the tensors of its network, before any is read.

    Args:
        stored: The file.
        own: Names and shapes of the network; None if they are not known yet.

    Raises:
        UsageError: It has others, or an optimizer's state that is larger than any of this network.
    """
    if own is None:
        return
    for part in ("model", "ema"):
        found = below(part, stored.shapes)
        if found or part == "model":
            networks.check_shapes(own, found, stored.path)
    kept = sum(math.prod(shape) for part in ("optimizer", "group") for shape in below(part, stored.shapes).values())
    most = _MOST_KEPT * (sum(map(math.prod, own.values())) + len(own))
    if kept > most:
        raise UsageError(
            f"`checkpoint` must hold the state of an optimizer of this network, got {shown_name(stored.path)} with "
            f"{kept:,} numbers, more than {most:,}: take another copy, or train again"
        )


def load_network(
    checkpoint: Checkpoint, path: str | Path, *, build: networks.Build = networks.build_from_zoo
) -> nn.Module:
    """Rebuild the trained network of a checkpoint, on the CPU, in eval mode; averaged weights if it has them.

    Args:
        checkpoint: As `load_checkpoint` returned it.
        path: Its file, for messages.
        build: Builds the network from the run's settings; for networks of your own.

    Raises:
        UsageError: The network cannot be built, or the weights are not its own.
        TrainingError: The network has diverged.
    """
    own = planned_shapes(checkpoint, path, build)
    if own is not None:
        networks.check_shapes(own, networks.shapes(checkpoint.weights), path)
    return _fill(checkpoint, path, build, compared=own is not None)


def planned_shapes(
    checkpoint: Checkpoint, path: str | Path, build: networks.Build
) -> dict[str, tuple[int, ...]] | None:
    """Return the shapes of the network's tensors without making any; None for a builder that needs real tensors."""
    try:
        with torch.device("meta"):
            return networks.shapes(_build(checkpoint, path, build).state_dict())
    except Exception:
        if build is networks.build_from_zoo:
            raise
        return None  # a builder of the user's own, which may look at values: its network is compared once it is there


def _build(checkpoint: Checkpoint, path: str | Path, build: networks.Build) -> nn.Module:
    try:
        network = build(checkpoint.network_config, len(checkpoint.class_names), checkpoint.in_chans)
    except UsageError as error:
        raise UsageError(
            f"`checkpoint` must be of a network that can be built, got {shown_name(path)} ({first_line(error)}): take "
            "another copy, or load a network of your own in Python, with its `build`"
        ) from error
    try:
        exchange_experts_(network, checkpoint.stores)
    except UsageError as error:
        raise UsageError(
            f"`checkpoint` must name experts that layers of its network can have, got {few(checkpoint.stores)} "
            f"({first_line(error)}): take another copy, or train again"
        ) from error
    try:
        make_static_(network, dict.fromkeys(checkpoint.static_layers))
    except UsageError as error:
        raise UsageError(
            f"`checkpoint` must name conditional layers of its network as static, got {few(checkpoint.static_layers)} "
            f"({first_line(error)}): take another copy, or train again"
        ) from error
    return network


def _fill(checkpoint: Checkpoint, path: str | Path, build: networks.Build, *, compared: bool) -> nn.Module:
    network = _build(checkpoint, path, build)
    networks.load_weights_(network, checkpoint.weights, path, compared=compared)
    check_finite(network, path, "take a checkpoint of an earlier epoch, or train again with a lower --lr")
    return network.eval()


def check_finite(network: nn.Module, path: str | Path, remedy: str) -> None:
    """Check that the weights and batch statistics that were read from a file are finite numbers.

    Args:
        network: With the weights of the file.
        path: The file, for the message.
        remedy: What to do if they are not.

    Raises:
        TrainingError: They are not.
    """
    values = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    learned = {name: each for name, each in values.items() if isinstance(each, nn.Parameter) or _STATISTIC in name}
    learned |= routed_buffers(network)
    wrong = [name for name, each in learned.items() if not bool(each.isfinite().all())]
    if wrong:
        raise TrainingError(
            f"the network of {shown_name(path)} has diverged, or the file is damaged: not all values of "
            f"{few(wrong, most=2)} are finite; {remedy}"
        )
