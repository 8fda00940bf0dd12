"""The experiments of the paper. Each function is the record of one: source, command, size, time and expected result.

The paper does not state its hardware. Times were measured here on one core of a shared x86 machine, for ten epochs of
CIFAR-10 at 16 pixels with `output_stride=16`, the runs of `docs/results.md`.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from condconv.errors import UsageError, shown
from condconv.lab.experiments import ladder
from condconv.lab.experiments.compact import arms as compact_arms
from condconv.lab.experiments.design import Arm, Experiment
from condconv.lab.rules import EXPERTS, WIDTH, one_of
from condconv.models.names import parse_name
from condconv.models.paper import FIGURE_2, TABLE_1, TABLE_3, TABLE_4, Ablation, PaperRow
from condconv.nn.methods import METHODS, OURS


def experts_width(
    widths: Sequence[str] = ("025", "050", "075", "100"), experts: Sequence[int] = (2, 4, 8, 16, 32)
) -> Experiment:
    """Accuracy by width and number of experts.

    Source: CondConv, Figure 2: MobileNetV1 on ImageNet, four widths, static and 2 to 32 experts.
    Command: `condconv experiment experts-width --data imagenet --seeds 3 --epochs 90 --image-size 224`.
    Size: 24 networks per seed.
    Time: 4 to 5 minutes per network at 0.12x, about 10 at 0.25x.
    Expected: each doubling of the experts adds accuracy, most at the smallest width (50.3 % static to 62.7 % with 32
    experts at 0.25x, 71.7 % to 75.8 % at 1.0x), for a few percent more multiply-adds with few experts and a wide
    network, a quarter more with 32 at 1.0x, and a third more with 32 at 0.25x.
    """
    arms = []
    for number in (None, *experts):
        curve = "static" if number is None else f"{number} experts"
        for width in widths:
            name = _v1(width, number)
            wide = f"{int(width) / 100:g}x"
            arms.append(_zoo(name, f"{wide}, {curve}", FIGURE_2, against=f"{wide}, static", curve=curve))
    return Experiment("experts-width", "Width and number of experts, MobileNetV1", "CondConv, Figure 2", tuple(arms))


_TABLE_1 = ("mobilenet_v1_100", "mobilenet_v2_100", "mnasnet_a1_100", "resnet_50", "tf_efficientnet_b0")


def plug_in(networks: Sequence[str] = _TABLE_1, experts: Sequence[int] = (8,)) -> Experiment:
    """Five networks, each static and with experts, all trained with the same settings.

    Source: CondConv, Table 1.
    Command: `condconv experiment plug-in --data imagenet --seeds 3 --epochs 90 --image-size 224`.
    Size: 10 networks per seed; ResNet-50 is the largest with 4.2 G multiply-adds.
    Time: not run.
    Expected: 0.9 (ResNet-50) to 3.0 points (MobileNetV2) more at 3 to 9 % more multiply-adds.
    """
    arms = []
    for name in networks:
        parsed = parse_name(name, "networks")
        if parsed.num_experts is not None:
            raise UsageError(f"`networks` must be static ones, got {shown(name)}: give the network without experts")
        arms.append(_zoo(name, name, TABLE_1, against=name))
        for number in experts:
            model = str(replace(parsed, num_experts=number))
            arms.append(_zoo(model, f"{name}, {number} experts", TABLE_1, against=name))
    return Experiment("plug-in", "Static networks and their conditional forms", "CondConv, Table 1", tuple(arms))


def begin_layer(width: str = "025", num_experts: int = 32) -> Experiment:
    """Which layer is the first with experts.

    Source: CondConv, Table 4: MobileNetV1 0.25x, 32 experts.
    Command: `condconv experiment begin-layer --data imagenet --seeds 3 --epochs 90 --image-size 224`.
    Size: 7 networks per seed.
    Time: 4 to 6 minutes per network with 8 experts at 0.12x.
    Expected: layer 7 (62.0 %) is as good as layer 5, and 0.5 points below layer 1; layer 13 loses 2.5; the classifier
    alone gains 4.2 points.
    """
    rows = _ablation(TABLE_4, width, num_experts)
    note = _note(width, num_experts)
    return Experiment("begin-layer", "First layer with experts", "CondConv, Table 4", rows, note)


def routing(width: str = "025", num_experts: int = 32) -> Experiment:
    """Eight routing functions and ways to share them, and the same experts without routing.

    The last row has one mixture for all images, at the weights that sigmoids start from: gains of the others over it
    are due to routing. It differs from the static network in how far its kernels move in a step.

    Source: CondConv, Table 3: MobileNetV1 0.25x, 32 experts; it has no such control.
    Command: `condconv experiment routing --data imagenet --seeds 3 --epochs 90 --image-size 224`.
    Size: 10 networks per seed.
    Time: 4 to 8 minutes per network with 8 experts at 0.12x.
    Expected: one sigmoid layer per block (62.0 %) is among the best; one routing for the whole network (56.5 %) and
    very small or large hidden layers (57.7, 54.1 %) are worse.
    """
    # Table 3 has no static row; Table 4, which is about the same network, has.
    rows = _ablation((*TABLE_3, TABLE_4[0]), width, num_experts)
    control = Arm("all images alike (control)", _v1(width, num_experts), {"routing": _ALIKE})
    note = _note(width, num_experts)
    return Experiment("routing", "Routing functions", "CondConv, Table 3", (*rows, control), note)


def ensembles(width: str = "050", num_experts: int = 4, size: ladder.Size = ladder.IMAGENET) -> Experiment:
    """The ladder from several networks to experts in every layer, at equal multiply-adds.

    Multiply-adds are counted for the images at hand: mixing costs the same for any image, so on small ones experts
    leave less for the width.

    Source: CondConv, which compares the method with coarser mixtures in words; the paper has no table of it. Every rung
    is a MobileNetV1 whose width is chosen so that the whole costs what the static network does.
    Command: `condconv experiment ensembles --data imagenet --seeds 3 --epochs 90 --image-size 224`.
    Size: 7 rows, 5 + 2 K trainings per seed, where K is the number of experts or branches.
    Time: about 10 minutes per training of all epochs at the cost of 0.25x.
    Expected: no published numbers.
    """
    return Experiment(
        "ensembles",
        f"From {num_experts} networks to {num_experts} experts in every layer, at equal multiply-adds",
        "no table of the paper",
        ladder.arms(_v1(width, None), num_experts, size),
        note=f"Each row but the first has {num_experts} networks, branches or experts. Rows have the widths whose "
        "multiply-adds come nearest to the first row's.",
    )


def starts(width: str = "025", num_experts: int = 8) -> Experiment:
    """How experts start, and whether the classifier has any.

    Source: none; the paper initialises each expert separately, and gives the classifier experts too.
    Command: `condconv experiment starts --data cifar10 --seeds 3 --epochs 6 --image-size 32`, and the other
    settings in `docs/results.md`.
    Size: 6 networks per seed.
    Time: 5 to 7 minutes per network at 0.12x.
    Expected: with short training and SGD, experts that start alike or a static classifier are ahead.
    """
    network = _v1(width, num_experts)
    arms = (
        Arm("static", _v1(width, None)),
        Arm("independent", network, {"init": "random"}),
        Arm("copies of one kernel", network, {"init": "same_output"}),
        Arm("copies, five times as far apart", network, {"init": "same_output", "expert_spread": 2.5}),
        Arm("independent, static classifier", network, {"init": "random", "conditional_classifier": False}),
        Arm("copies, static classifier", network, {"init": "same_output", "conditional_classifier": False}),
    )
    return Experiment("starts", f"How {num_experts} experts start", "no table of the paper", arms)


_SMALL = ("small_dense", "small_separable")
"""Families of networks for small images."""


def compact(networks: Sequence[str] = _SMALL, num_experts: int = 8) -> Experiment:
    """Whether about one kernel has the gain of several.

    Stores of experts on the networks for small images, compared with static networks of several widths, with
    squeeze-and-excitation, and with the same experts with one learned mixture for all images. The answer is
    a rule that was fixed before the runs, `condconv.lab.experiments.verdicts.about_one_kernel`.

    Source: none.
    Command: `condconv experiment compact --data cifar10 --image-size 32 --seeds 6 --epochs 30 --optimizer sgd --lr 0.1
    --batch-size 128`.
    Size: 14 networks per seed and network.
    Time: a third of a minute to a minute per epoch at 32 pixels.
    Expected: whole kernels gain about 3 points, shared ones more than half of that.
    """
    arms = tuple(arm for name in networks for arm in _of_stores(name, num_experts))
    title = "The gain of several kernels for about one"
    return Experiment("compact", title, "no table of the paper", arms, rule="about one kernel")


def _of_stores(network: str, num_experts: int) -> tuple[Arm, ...]:
    """Return the arms of `compact` for a family of networks.

    Raises:
        UsageError: It is not one for small images, or the number of experts is out of range.
    """
    one_of(*_SMALL).check("networks", network)
    EXPERTS.check("num_experts", num_experts)
    return compact_arms(network, num_experts)


def methods(networks: Sequence[str] = _SMALL, num_experts: int = 8) -> Experiment:
    """Published methods under one recipe.

    Each method has the kernels that its paper prefers. The deltas and the shared experts of this package stand next to
    them, and static networks as references: the plain one, and two that are wider.

    Source: none.
    Command: `condconv experiment methods --data cifar10 --image-size 32 --seeds 6 --epochs 30 --optimizer sgd --lr 0.1
    --batch-size 128`.
    Size: 12 networks per seed and network.
    Time: a third of a minute to a minute per epoch at 32 pixels.
    Expected: no published numbers.
    """
    others = ("static", "static, 113 % wide", "static, 131 % wide", "deltas", "deltas, images alike", "shared")
    arms: list[Arm] = []
    for network in networks:
        labels = [f"{network}, {each}" for each in others]
        arms += [arm for arm in _of_stores(network, num_experts) if arm.label in labels]
        for name, method in METHODS.items():
            if method.source != OURS:
                model = f"{network}_cc_100_{method.num_experts}e"
                arms.append(Arm(f"{network}, {name}", model, against=labels[0], method=name))
    return Experiment("methods", "Published methods under one recipe", "no table of the paper", tuple(arms))


_TABLE_2 = {
    "mobilenet_v1_050": (14.4, 18.0),
    "mobilenet_v1_075": (18.2, 21.0),
    "mobilenet_v1_100": (20.3, 22.4),
}
"""COCO's AP in percent, static and conditional; the figures at 0.75x are not confirmed by the paper's text."""


def detection(num_experts: int = 8) -> Experiment:
    """SSD300 on the features of MobileNetV1, static and with experts.

    Source: CondConv, Table 2, on COCO; the paper scores on a part of the validation images (minival), the command on
    all of COCO 2017's. Rate, epochs and batch are chosen here: the paper's are not known.
    Command: `condconv experiment detection --data coco --epochs 120 --batch-size 64 --optimizer sgd --lr 0.02
    --weight-decay 5e-4`, with COCO 2017 in its own layout; add `--init-from` with a classifier's checkpoint to start
    from its features.
    Size: 6 networks per seed.
    Time: not run on COCO.
    Expected: 2.1 (1.0x) to 3.6 points (0.5x) more at about 4 % more multiply-adds.
    """
    arms = []
    for name, (static, conditional) in _TABLE_2.items():
        model = str(replace(parse_name(name), num_experts=num_experts))
        arms.append(Arm(name, name, paper=static, against=name))
        arms.append(Arm(f"{name}, {num_experts} experts", model, paper=conditional, against=name))
    return Experiment(
        "detection",
        "SSD300 with MobileNetV1 features",
        "CondConv, Table 2",
        tuple(arms),
        metric="COCO AP (%)",
        task="detection",
    )


CATALOG: dict[str, Callable[..., Experiment]] = {
    "experts-width": experts_width,
    "plug-in": plug_in,
    "begin-layer": begin_layer,
    "routing": routing,
    "ensembles": ensembles,
    "starts": starts,
    "compact": compact,
    "methods": methods,
    "detection": detection,
}
"""Experiments by the names of the command line."""


def create_experiment(name: str, init: str | None = None, *, control: bool = False, **options: Any) -> Experiment:
    """Return an experiment.

    Args:
        name: A key of `CATALOG`.
        init: How experts start in all networks that leave it open, as in `condconv.models.create_model`.
        control: Whether to train each network with experts again with one mixture for all images, at the weights
            that sigmoids start from. The gain over it is due to routing. It differs from the static network in how
            far its kernels move in a step.
        **options: Of its function; `None` stands for the function's own default.

    Raises:
        UsageError: There is no such experiment, it does not have the option, it has the control anyway, or a network
            would be in it twice.
    """
    if name not in CATALOG:
        raise UsageError(f"`name` must be one of {', '.join(CATALOG)}, got {shown(name)}: choose one of these")
    given = {key: value for key, value in options.items() if value is not None}
    known = inspect.signature(CATALOG[name]).parameters
    for key in given:
        if key not in known:
            raise UsageError(
                f"`{key}` must not be given for {name!r}, which has {', '.join(known)}, got {shown(given[key])}: leave "
                "it out"
            )
    experiment = CATALOG[name](**given)
    (label, times), *_ = Counter(arm.label for arm in experiment.arms).most_common()
    if times > 1:
        raise UsageError(
            f"`{name}` must have each network once, got {shown(label)} {times} times: leave out what is repeated"
        )
    arms = experiment.arms
    if control:
        if any(arm.options.get("routing") == _ALIKE for arm in arms):
            raise UsageError(
                f"`control` must not be given for {name!r}, which has one row of it, got True: leave it out"
            )
        arms = tuple(each for arm in arms for each in ((arm, _control(arm)) if arm.has_experts else (arm,)))
    if init is not None:
        arms = tuple(_start(arm, init) for arm in arms)
    return replace(experiment, arms=arms)


def _start(arm: Arm, init: str) -> Arm:
    return replace(arm, options={"init": init, **arm.options}) if arm.has_experts else arm


_ALIKE = "constant(weights=0.5)"
"""Routing that gives all images the weights that sigmoids start from."""


def _control(arm: Arm) -> Arm:
    """Return an arm's network without routing."""
    curve = None if arm.curve is None else f"{arm.curve}, images alike"
    return replace(
        arm, label=f"{arm.label}, images alike", options={**arm.options, "routing": _ALIKE}, paper=None, curve=curve
    )


def _v1(width: str, experts: int | None) -> str:
    WIDTH.check("width", width)
    if experts is not None:
        EXPERTS.check("num_experts", experts)
    return f"mobilenet_v1_{width}" if experts is None else f"mobilenet_v1_cc_{width}_{experts}e"


def _zoo(model: str, label: str, rows: Mapping[str, PaperRow], *, against: str, curve: str | None = None) -> Arm:
    """Return the arm of a network, with the figure that a table of the paper has for it."""
    row = rows.get(model)
    return Arm(label, model, paper=None if row is None else row.top1, against=against, curve=curve)


def _note(width: str, num_experts: int) -> str:
    """Return a note about the paper's figures for an ablation of another size."""
    same = (width, num_experts) == ("025", 32)
    return "" if same else "The paper's figures are those of MobileNetV1 0.25x with 32 experts."


def _ablation(table: Sequence[Ablation], width: str, num_experts: int) -> tuple[Arm, ...]:
    """Return the rows of an ablation at another width and number of experts; the paper's figures stay with them."""
    names = {"mobilenet_v1_025": _v1(width, None), "mobilenet_v1_cc_025_32e": _v1(width, num_experts)}
    return tuple(Arm(row.label, names[row.name], dict(row.options), paper=row.row.top1) for row in table)
