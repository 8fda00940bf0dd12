"""The members of an elastic checkpoint: their scores and costs, and the chosen one as a checkpoint of its own."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from condconv.convert.elastic import Limits, Member, NotFiniteError, cut_members, estimate_statistics_, largest_within
from condconv.errors import TrainingError, UsageError, shown, shown_name
from condconv.lab.data.image_data import train_transform
from condconv.lab.data.images import Images
from condconv.lab.data.workers import shortages_explained
from condconv.lab.processes import seed_everything
from condconv.lab.saved import network as networks
from condconv.lab.saved.checkpoint import Checkpoint
from condconv.lab.saved.evaluate import Evaluation, check_finite_loss, evaluate_images
from condconv.lab.saved.reading import Reading, open_images, open_labelled, own_data
from condconv.lab.saved.rebuild import load_trained
from condconv.lab.saved.remaking import check_out, save_remade
from condconv.nn.conditional import conditional_layers
from condconv.nn.experts.build import written_experts


@dataclass(frozen=True)
class ScoredMember:
    """A member and what it scores on the validation images.

    Attributes:
        member: Its number and what it costs.
        scores: Of the network.
        network: The member alone, with its own statistics of batch norms, in eval mode.
    """

    member: Member
    scores: Evaluation
    network: nn.Module


@dataclass(frozen=True)
class Budget:
    """What `score_members` found.

    Attributes:
        members: All members, the smallest first.
        chosen: The one that was written, or `None`.
        elastic: Whether the network was trained for its members; the smaller ones of others score badly.
        image_shape: `(C, S, S)` of the images that the networks take.
    """

    members: tuple[ScoredMember, ...]
    chosen: Member | None
    elastic: bool
    image_shape: tuple[int, int, int]


@shortages_explained()
def score_members(
    path: str | Path,
    data: str | None = None,
    *,
    out: str | Path | None = None,
    num_experts: int | None = None,
    rank: int | None = None,
    max_bytes: int | None = None,
    max_madds: int | None = None,
    data_dir: str | None = None,
    reading: Reading | None = None,
    force: bool = False,
    build: networks.Build = networks.build_from_zoo,
) -> Budget:
    """Score every member of an elastic checkpoint, and write the largest within a budget to a new one.

    The statistics of batch norms are estimated for each member over training images, augmented as in training: over
    plain images, members of a small network were two points worse. Python's, NumPy's and torch's random numbers are
    seeded for that. The networks of all members are in memory at once.

    Args:
        path: A checkpoint of `train`, or of this function.
        data: Images; training images for the statistics, validation images for the scores. `None` for the digits, if
            the network was trained on them.
        out: File to write the chosen member to; `None` to write nothing.
        num_experts: Most experts per layer; `None` for any number. All budgets need `out`.
        rank: Most ranks per layer, where members have fewer ranks; `None` for any number.
        max_bytes: Most bytes of parameters and buffers; `None` for any number.
        max_madds: Most multiply-adds for one image; `None` for any number.
        data_dir: Where the files of a named dataset are.
        reading: How images are read; `max_images` counts those for the statistics.
        force: Whether a file of the name `out` is replaced.
        build: Builds the network; for networks of your own.

    Raises:
        UsageError: The checkpoint or the data cannot be used, the network has no members, or none is within the budget.
        TrainingError: The network has diverged.
    """
    limits = Limits(num_experts, rank, max_bytes, max_madds)
    if (out is None) != (limits == Limits()):
        raise UsageError(
            f"`out` must come with a budget, and a budget with it, got {shown(out)}: give -o and one of --experts, "
            "--rank, --max-bytes and --max-madds, or none of them"
        )
    if out is not None:
        check_out(Path(out), Path(path), force)
    reading = reading or Reading()
    checkpoint, network = load_trained(path, build=build)
    shape = (checkpoint.in_chans, checkpoint.image_size, checkpoint.image_size)
    try:
        found = tuple(cut_members(network, torch.zeros(1, *shape)))
    except UsageError as error:
        raise UsageError(f"`checkpoint` must hold a network with members, got {shown_name(path)}: {error}") from error
    chosen = None if out is None else largest_within([member for member, _ in found], limits)
    training = _open_augmented(path, checkpoint, data or own_data(checkpoint, "train"), data_dir, reading.skip)
    images = open_labelled(checkpoint, data or own_data(checkpoint, "val"), data_dir=data_dir, skip=reading.skip)
    scored = []
    for member, cut in found:
        if member.number < len(found) - 1:  # the largest has its own
            _estimate_(cut, member, training, reading, path)
        scores = evaluate_images(cut, images, replace(reading, max_images=None))
        check_finite_loss(scores, path)
        scored.append(ScoredMember(member, scores, cut))
        if out is not None and member == chosen:
            _save_member(out, checkpoint, network, cut, member)
    return Budget(tuple(scored), chosen, checkpoint.config.elastic, shape)


def _open_augmented(path: str | Path, checkpoint: Checkpoint, data: str, data_dir: str | None, skip: bool) -> Images:
    """Open the training images, augmented as in training.

    Raises:
        UsageError: The data cannot be used, or timm does not know the policy that the checkpoint names.
    """
    images, _ = open_images(checkpoint, data, split="train", data_dir=data_dir, skip=skip)
    try:
        images.transform = train_transform(checkpoint.config, checkpoint.preprocessing)
    except UsageError as error:
        raise UsageError(
            f"`checkpoint` must say how its images were augmented, got {shown_name(path)}: {error}"
        ) from error
    return images


def _estimate_(cut: nn.Module, member: Member, training: Images, reading: Reading, path: str | Path) -> None:
    """Set the statistics of a member's batch norms, in place.

    Raises:
        TrainingError: They would not be finite.
    """
    seed_everything(0)  # all members see the same images
    title = f"statistics, {member.number} {member.unit}"
    read = reading.read(training, reading.choose(training), title)
    readable = ((batch, targets >= 0) for batch, targets in read)
    try:
        estimate_statistics_(reading.place(cut), (batch[good] for batch, good in readable if bool(good.any())))
    except NotFiniteError as error:
        raise TrainingError(
            f"the network of {shown_name(path)} has diverged, with {member.number} {member.unit} its statistics of "
            "batch norms are not finite: take a checkpoint of an earlier epoch, or train again with a lower --lr"
        ) from error


def _save_member(out: str | Path, checkpoint: Checkpoint, largest: nn.Module, cut: nn.Module, member: Member) -> None:
    """Write a member: its layers are static, its stores say their ranks, or its name how many experts it has."""
    from condconv.models.names import parse_name

    changes: dict[str, Any]
    if member.number == 0:
        changes = {"static_layers": (*checkpoint.static_layers, *conditional_layers(largest))}
    elif member.unit == "ranks":
        stores = {name: written_experts(layer.experts) for name, layer in conditional_layers(cut).items()}
        changes = {"stores": {**checkpoint.stores, **stores}}
    else:
        name = replace(parse_name(checkpoint.config.model, "model"), num_experts=member.number)
        changes = {"config": replace(checkpoint.config, model=str(name))}
    state = {name: each.cpu().contiguous() for name, each in cut.state_dict().items()}
    save_remade(out, checkpoint, state, **changes)
