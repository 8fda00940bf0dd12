"""The members of an elastic checkpoint: their scores and costs, and the chosen one as a checkpoint of its own."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from condconv.convert.elastic import Member, estimate_statistics_, keep_experts_, largest_within, members
from condconv.errors import UsageError, shown
from condconv.lab.data.workers import shortages_explained
from condconv.lab.saved import network as networks
from condconv.lab.saved.checkpoint import Checkpoint
from condconv.lab.saved.evaluate import Evaluation, check_finite_loss, evaluate_images
from condconv.lab.saved.reading import Reading, open_images, open_labelled, own_data
from condconv.lab.saved.rebuild import load_trained
from condconv.lab.saved.remaking import check_out, save_remade
from condconv.nn.conditional import conditional_layers


@dataclass(frozen=True)
class ScoredMember:
    """A member and what it scores on the validation images."""

    member: Member
    scores: Evaluation


@dataclass(frozen=True)
class Budget:
    """What `score_members` found.

    Attributes:
        members: All members, the smallest first.
        chosen: The one that was written, or `None`.
        elastic: Whether the network was trained for its members; the smaller ones of others score badly.
    """

    members: tuple[ScoredMember, ...]
    chosen: Member | None
    elastic: bool


@shortages_explained()
def score_members(
    path: str | Path,
    data: str | None = None,
    *,
    out: str | Path | None = None,
    num_experts: int | None = None,
    max_bytes: int | None = None,
    max_madds: int | None = None,
    data_dir: str | None = None,
    reading: Reading | None = None,
    force: bool = False,
    build: networks.Build = networks.build_from_zoo,
) -> Budget:
    """Score every member of an elastic checkpoint, and write the largest within a budget to a new one.

    The statistics of batch norms are estimated for each member over training images, without augmentation.

    Args:
        path: A checkpoint of `train`, or of this function.
        data: Images; training images for the statistics, validation images for the scores. `None` for the digits, if
            the network was trained on them.
        out: File to write the chosen member to; `None` to write nothing.
        num_experts: Most experts per layer; `None` for any number. The three budgets need `out`.
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
    given = (num_experts, max_bytes, max_madds)
    if (out is None) != (given == (None, None, None)):
        raise UsageError(
            f"`out` must come with a budget, and a budget with it, got {shown(out)}: give -o and one of --experts, "
            "--max-bytes and --max-madds, or none of them"
        )
    if out is not None:
        check_out(Path(out), Path(path), force)
    reading = reading or Reading()
    checkpoint, network = load_trained(path, build=build)
    example = torch.zeros(1, checkpoint.in_chans, checkpoint.image_size, checkpoint.image_size)
    found = members(network, example)
    chosen = None if out is None else largest_within(found, *given)
    training, _ = open_images(
        checkpoint, data or own_data(checkpoint, "train"), split="train", data_dir=data_dir, skip=reading.skip
    )
    images = open_labelled(checkpoint, data or own_data(checkpoint, "val"), data_dir=data_dir, skip=reading.skip)
    scored = []
    for member in found:
        cut = copy.deepcopy(network)
        keep_experts_(cut, member.num_experts)
        if member.num_experts < found[-1].num_experts:  # the largest has its own
            read = reading.read(training, reading.choose(training), f"statistics, {member.num_experts} experts")
            readable = ((batch, targets >= 0) for batch, targets in read)
            estimate_statistics_(reading.place(cut), (batch[good] for batch, good in readable if bool(good.any())))
        scores = evaluate_images(cut, images, replace(reading, max_images=None))
        check_finite_loss(scores, path)
        scored.append(ScoredMember(member, scores))
        if out is not None and member == chosen:
            _save_member(out, checkpoint, network, cut, member.num_experts)
    return Budget(tuple(scored), chosen, checkpoint.config.elastic)


def _save_member(out: str | Path, checkpoint: Checkpoint, largest: nn.Module, cut: nn.Module, num_experts: int) -> None:
    """Write a member: the network's name says how many experts it has, or its layers are static."""
    from condconv.models.names import parse_name

    state = {name: each.cpu().contiguous() for name, each in cut.state_dict().items()}
    if num_experts == 0:
        static = (*checkpoint.static_layers, *conditional_layers(largest))
        save_remade(out, checkpoint, state, static_layers=static)
    else:
        name = replace(parse_name(checkpoint.config.model, "model"), num_experts=num_experts)
        save_remade(out, checkpoint, state, config=replace(checkpoint.config, model=str(name)))
