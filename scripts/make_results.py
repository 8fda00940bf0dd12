"""Write docs/results.md and its pictures from what `condconv experiment` left.

`python scripts/make_results.py` reads benchmarks/results/experiments/*.json, which are the `records.json` of
experiments, and single trials in benchmarks/results; `--check` says whether the page is up to date.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from statistics import mean, median
from typing import Any

from condconv.experiments.comparison import as_markdown, confidence_half_width
from condconv.experiments.design import Arm, Experiment
from condconv.experiments.runs import RunRecord
from condconv.experiments.tables import compared, differences, last_loss, plot, read, summarise, table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # of a script, only its own folder is on the path
from scripts.page import write_or_check

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "results.md"
SOURCES = ROOT / "benchmarks" / "results" / "experiments"
STARTS = ROOT / "benchmarks" / "results" / "classifier-start.json"
TRIALS = ROOT / "benchmarks" / "results" / "router-trials.json"
COPIES = ROOT / "benchmarks" / "results" / "start-trials.json"
ROUTING = ROOT / "benchmarks" / "results" / "routing-trials.json"
REGIMES = ROOT / "benchmarks" / "results" / "regime-trials.json"
MERGED = ROOT / "benchmarks" / "results" / "forty-epochs-routing.json"
ASSETS = ROOT / "docs" / "assets"
CONTROL = "all images alike (control)"

INTRO = """\
# Results

What the networks reach when they are trained with this package, whether or not it agrees with the paper. This page is
written by `scripts/make_results.py` from the records that `condconv experiment` leaves; a test compares it with what it
would write now.

All of it is small: CIFAR-10 (50,000 images to train and 10,000 to validate, 32 × 32 pixels or reduced to 16 × 16),
MobileNetV1 of a quarter or an eighth of the width with `output_stride=16`, or four convolutions, and two to forty
epochs, of which one core does one in about a minute. That is far too short for a final accuracy. The paper's figures
are for ImageNet, and stand beside ours for the direction only.

**Routing gains where layers see pixels and routers learn.** On a small network whose layers work on 4 to 16 pixels a
side, four experts are 1.9 points above the static network and 1.8 above the same experts mixed alike for all images,
six seeds each, if their routers learn at ten times the rate of the kernels (`--router-lr-scale 10`). At the rate of
everything else most of that is lost.

**On MobileNetV1 at 16 pixels no gain of routing is shown**, and most of this page is about that. Networks with experts
are ahead of the static one there in one setting, by 1.6 points over six seeds (95 % interval 0.3 to 2.9; three seeds
were added after a look at the first three): experts that start as copies of one kernel. But the same experts mixed
alike for all images are no less ahead, by 2.2 points over four seeds (-2.3 to 6.7), and how much of the gain is due to
routing, and how much to the higher rate that a sum of experts amounts to, we cannot tell; with experts from the first
layer on, where routing gains most, it adds 0.3 points of 2.2. Sharper routing, by rate or by optimizer, made none of
the few networks better that were tried with one seed each. After forty epochs the network with routing is ahead of that
control, by 0.6 points over three seeds, within their spread, with the lower training loss on all three. Two seeds of a
network are often two points apart, so that the intervals of three seeds, as in most tables here, are about four points
wide to each side: that zero lies within them says little.

What nearly all of these runs of MobileNetV1 have in common works against routing:

- **Maps of few pixels.** At 16 pixels and `output_stride=16` the layers with experts work on 2 × 2 pixels, and in the
  last two blocks on one, where a depthwise 3 × 3 kernel is little more than its centre.
- **Experts that start as copies of one kernel**, with routers at zero (`--init preserve`), because the paper's start,
  independent experts and random routers, learned more slowly in these few epochs. The kernels of two images end about
  one percent apart.
- **Rates chosen for the static network.** A mixture of experts moves further in a step than a kernel does, or less far,
  and routers learn at the rate of kernels; at 16 pixels no network with experts has had rates of its own looked for.

Nor do experts pay on images this small. Mixing eight kernels of MobileNetV1 0.12x takes more multiply-adds than
convolving with one of them: 0.70M with experts, 0.29M without. A static network of 0.83M, at 0.25x, is six points
better. The method is for maps of many pixels, where mixing costs a few percent.

What decided most of what came out, by what is measured so far: **the rate of the routers**, how the classifier
starts, how experts start, decay of the routers, with one seed, and **how far a mixture moves in a step**. Softmax
routing was 2.9 points behind sigmoids at the rate of everything else; with sixteen times the rate for its experts,
where its mixture moves as far as theirs, three seeds show no difference.
"""
SUMMARY = """\
## In short

Points of accuracy over the network that each is compared with, seed by seed, and the 95 % interval of the mean
(Student's t; none for fewer than three seeds); and the same of the last epoch's training loss, which varies less, where
it was kept. No interval is corrected for the number of comparisons, nor for seeds added after a first look.
"""
TEXTS = {
    "small-network": """\
## Where routing brings something, six seeds

Four 3 × 3 convolutions of 8 to 32 channels on CIFAR-10 at 16 pixels, each with a batch norm and with experts: maps of
16, 8, 4 and 4 pixels a side, where MobileNetV1 of the sections below has two and one.

- **With routers at ten times the rate of the kernels, four experts are 1.9 points above the static network** (six
  seeds, 1.2 to 2.2; 95 % interval 1.5 to 2.3), **and 1.8 above the same experts mixed alike for all images** (1.3 to
  2.3): that is routing. The training loss is lower on every seed, by 0.05 to 0.06. At thirty times the rate they are
  1.4 above it, and eight experts 2.0.
- **At the rate of everything else, as in the rest of this page, little of it is there**: 0.5 points above the static
  network, 0.4 above the experts mixed alike (-0.2 to 1.0). The rate of the routers brings 1.4 points (0.8 to 2.0). A
  router learns from what the experts differ by, which is little at first, and its steps of SGD are as small.
- **With AdamW**, whose steps do not shrink with the gradient, and experts that start each on its own, as the paper's,
  it is there at the plain rate: 1.7 points above the static network (2.4, 0.4 and 2.3; -1.1 to 4.5), 1.7 above the
  experts mixed alike (-0.6 to 4.0), with the lower training loss on all three seeds. Seeds 0 to 2 were run.
- **What it costs.** Mixing four kernels takes 17 % more multiply-adds on maps this small. A static network with nine
  channels for eight, 24 % more, is 1.5 points above the static one: routing is ahead of it by 0.4 (-0.4 to 1.2), with
  the lower training loss on every seed. On larger maps mixing costs less, width as much.
- **What was not found**: on MobileNetV1 0.12x of the sections below thirty times the rate changes nothing or harms.
  One seed each: from layer 7 on its training loss after eight of ten epochs is 1.398 (at the plain rate 1.391); from
  layer 1 on it has 60.5 % (63.9). Its routers come to weights that are far from one half, and alike for all images in
  most blocks.
""",
    "starts-sixteen-pixels": """\
## Images of 16 pixels, six seeds

The smallest network on the smallest images, where the network is the bottleneck. Copies of one kernel are ahead of
the static network on all six seeds, by 1.6 points in the mean, 95 % interval 0.3 to 2.9. Copies that start five times
as far apart (`noise=2.5`) are ahead on five of six, by 2.3, interval -0.2 to 4.7: best in the mean, and 2.3 behind on
one seed. Independent experts, the paper's start, were run with three seeds: ahead on two, by 0.5 and 1.4, and 5.3
points behind on the third. The next section tells what of this is routing. Seeds 3 to 5 were added after a look at
the first three. The two arms with a static classifier, which the experiment has besides, were not run. The first
three seeds shared two cores with other programs, so that their minutes say little. The images were reduced once,
before, by the bicubic filter that `--image-size 16` applies to each image as it is read: pixel for pixel the same;
from seed 3 on, and in all of `noise=2.5`, they were kept in memory, with the same numbers bit for bit.
""",
    "control-sixteen-pixels": """\
## The same without routing

The last row has the experts, the start and the parameters of the first, and mixes them alike for all images, at the
one half that sigmoids start from: a static network each of whose kernels is a sum of eight. It is 0.8 points above the
network with routing (four seeds, 0.3, 3.4, -2.0 and 1.4), and 2.2 above the static one (2.0, 3.5, -1.6 and 4.9; 95 %
interval -2.3 to 6.7). **So the gain of copies in the section before is not shown to be one of routing**, and the
control's own gain is not beyond doubt either. In a step of SGD, momentum and decay included, such a sum moves as one
kernel would at twice the rate and half the decay: **the control is, to rounding, the static network with twice the rate
in the layers that have experts**, and its gain, if it is one, that of the rate. The table's differences are to its
first row, the network with routing.
""",
    "widths-sixteen-pixels": """\
## Numbers of experts and widths, three seeds

The same settings, copies of one kernel. At an eighth of the width every number of experts is ahead of the static
network in the mean, by 0.4 to 0.8 points, none by more than its spread. At a quarter, eight and sixteen are ahead by
0.6 and 1.0, within theirs, and **four are behind on every seed**, by 1.7, 1.3 and 1.2 points (95 % interval 0.8 to
2.0), with the higher training loss on every seed too. So at this width more experts do better, as in the paper, but
from below the static network. Part of it may be the rate: in a step of SGD the mixture of four copies moves as far as a
static kernel, that of eight twice, of sixteen four times as far; so that four experts are the ones to compare with the
static network at equal rates, and with them routing brings nothing here. The minutes of the rows are not comparable:
other programs were at work beside some of them.
""",
    "begin-layer": """\
## The first layer with experts, three seeds

As in the paper, experts from the first layer on do best: 2.2 points above the static network (3.7, 2.8 and 0.0; 95 %
interval -2.6 to 6.9), with the lower training loss on all three seeds. **Without routing it is much the same**: the
same experts mixed alike for all images are 1.9 above the static network, and the routing adds 0.3 (0.3, -0.1 and 0.5;
-0.5 to 1.0). Of the other rows the seeds are too few to tell: from the thirteenth layer on -1.1 (-3.5 to 1.3), and the
classifier alone, which brings 4.2 points in the paper, -0.2 (-8.0 to 7.6). Unlike the paper's, experts start as copies
of one kernel and routers at zero. Row 7 is the network of the sections above, and shows its runs. Of the control, which
`--control` trains beside each row, the one of the first row was run.
""",
    "routing-ablation": """\
## Ways to route, three seeds

- **Softmax is behind sigmoids**, by 2.9 points on the same seeds (2.3, 2.9 and 3.3; 95 % interval 1.6 to 4.1), as it is
  in the paper, by 1.5. It may be no more than the rate, see the next section.
- **A hidden layer of 8 C units** is 1.1 points above the first row (0.9 below to 3.1 above), with the lower training
  loss on every seed. In the paper it is the worst.
- Of the others three seeds cannot tell: one routing for the whole network, which costs 5.5 points in the paper, is 0.2
  behind here (6.0 behind to 5.7 ahead), and C / 8 units are 2.0 behind (7.8 behind to 3.7 ahead).

Unlike the paper's, experts start as copies of one kernel, and routers at zero. The first row, the static one and the
control are runs of the sections above.
""",
    "softmax-rate": """\
## Softmax at the rate that its mixture needs

In a step of SGD a mixture moves as many times as far as one kernel as the squares of its weights add up to: E / 4 times
at a sigmoid's one half, which is twice for 8 experts, and 1 / E at a softmax's 1 / E, an eighth. With
`--expert-lr-scale 16` the experts learn at 16 times the rate of everything else, at the same decay, and the softmax's
mixture moves as far as the sigmoids' does. **Then nothing is left of the difference to sigmoids**: 0.1 points (-1.1,
2.5 and -1.2; 95 % interval -5.1 to 5.2), after 2.9 at the plain rate. From the one rate to the other softmax gains 2.9
points (1.2, 5.3 and 2.2; -2.5 to 8.3), with the lower training loss on every seed. Whether the paper's 1.5 points have
the same reason we do not know. The command makes the last row; the others are runs of the section before.
""",
    "ensemble-ladder": """\
## From several networks to experts in every layer, three seeds

Seven ways to spend what MobileNetV1 0.25x costs on images of 16 pixels, as near as widths allow (0.79M to 0.88M
multiply-adds): networks and snapshots of 0.08x, branches in the last stage on 0.21x, in every stage on 0.11x, experts
on 0.16x.

- **Experts in every layer are behind one network**, by 4.2 points (4.2, 3.2 and 5.1; 95 % interval 1.9 to 6.5). Mixing
  costs more than convolving on maps of so few pixels, and equal multiply-adds leave them a width of 0.16x; at 224
  pixels it would be 0.24x, and the comparison another one.
- **Branches in every stage, weighted by the input, are the best**: 1.3 points above the one network (0.1, 2.2 and 1.7;
  -1.3 to 4.0), with fewer parameters. Those in the last stage are 0.5 above it (-2.8 to 3.8), averaged 0.5 below (-7.3
  to 6.4).
- Four networks of 0.08x are each too narrow (58 to 63), and gain four points by being averaged. Snapshots share the ten
  epochs, two or three each, and have trained for a quarter of the others' updates.

The minutes are those of different loads of the machine.
""",
    "forty-epochs": """\
## Images of 16 pixels, forty epochs

Four times as long as above, with the control. The network with routing is ahead of the static one by 2.0, -0.1 and 1.9
points, and of the same experts mixed alike for all images by 1.0, 0.8 and -0.2: the first sign of something that is
routing, where ten epochs had none. Three seeds do not prove it: the 95 % interval of the mean is -1.0 to 2.1. The
training loss says the same: with routing it is the lowest on all three seeds, by 0.030, 0.030 and 0.011 below the
control's (interval 0.052 below to 0.004 above). What has become of the experts is in a
[section below](#experts-that-grow-together). The runs were held up by others, so that their minutes
say nothing.
""",
    "copies-eight-epochs": """\
## Experts that start as copies, a higher rate, eight epochs

An eighth of the width, the settings that were found best in memory (below), two seeds: experts are behind by 0.7 points
on one and ahead by 2.4 on the other. The mean is ahead, by less than the spread. The third seed is missing. The runs
were held up by others, so that their minutes say nothing.
""",
    "six-epochs": """\
## Static and conditional, six epochs

Over three seeds the network with eight experts is two points below the static one, which is within the spread from
seed to seed. Both are far from what they could learn: the accuracy of each still rises with every epoch.
""",
    "twenty-four-epochs": """\
## Four times as long

One seed, twenty-four epochs: the same accuracy to a hundredth of a point, at a slightly lower training loss with
experts (0.928 and 0.937; like the routing weights here and in the next section, seen when they were run). The routing
weights of an expert differ from image to image by 0.017 to 0.097 (standard deviation, mean over a layer's experts),
most in the first blocks with experts.
""",
    "no-router-decay": """\
## Widths and numbers of experts, routers that do not decay

One seed of most networks, so these are no verdicts: the two seeds of eight experts at a quarter of the width are ten
points apart, one above and one below all static ones of that width. In the worse of the two, 22 to 95 % of a layer's
routing weights were below 0.05 or above 0.95 in the end, and hardly depended on the image. They were run before
`--no-router-decay` existed, by a state of the code in which routers never decayed; the command says the same in
today's words.
""",
}
"""What is said of each experiment, in the order of the page."""
DIAGNOSIS = """\
## Eight experts that did not learn, and why

The first runs were worse than this. A network with 4 experts was four points better than the static one, one with 8
hardly learned, one with 16 was far below it. The reason was where the classifier starts.

timm, like the authors, starts the classifier's weights between ±1 / √classes. For the 1000 classes of ImageNet that
is ±0.03. For ten it is ±0.3: the first loss is 2.9 where ten equal guesses have 2.3. Experts make it worse. Under
sigmoid routing, which starts at one half, the sum of E experts drawn independently is √E / 2 times as wide as one
kernel, and moves E / 4 times as far in a step of SGD, since each expert moves in proportion to its routing weight.
Everywhere else a batch norm divides by the width, so that neither shows; nothing follows the classifier. With 8 and
16 experts the first loss was 3.4 to 5.4.

All with one seed:
"""
LESSONS = """\
What follows from it:

- **The static network suffers too**, by six points here. Had only the networks with experts been mended, they would
  seem to gain four points over a static twin that starts badly. A comparison is fair only if both start well.
- Networks of this package now start the classifier as for 1000 classes, static and conditional alike, if there are
  fewer; independent experts of a `CondLinear` start no wider than torch's own linear layer. On ImageNet nothing
  changes.
- It was not the router's rate or start, as long as the classifier started badly: neither a tenth of its learning rate
  nor a start at zero helped. Clipping the gradient norm hid a part of it.
- Look at the first loss of your own training. It should be close to the logarithm of the number of classes before any
  gain can be expected.

## What is not measured yet

`plug-in` and `detection`. The settings for them are those of the 16-pixel runs above, with `--init preserve --control`.
"""
EXPERTS_START = """\
## How experts start, and at what rate

In memory, at an eighth of the width, with the settings found steadiest for the static network (three seeds within 1.4
points). 8 experts each; one seed where one is shown.

- **At a rate of 0.1 copies of one kernel are 3.4 points above the static network** (62.2 ± 0.4 and 58.7 ± 0.7, three
  seeds), and independent experts, the paper's start, are below it or no better: 56.1 with routers at the full rate, and
  57.6 ± 2.8 with routers at a hundredth of it. Their training loss is higher than that of copies in every epoch, and
  their seeds differ by five points. The experts of copies differ too, but the differences cancel at the start, so that
  all images begin with the static network's kernels.
- **Not all of it is routing.** The sum of 8 copies, each a quarter of the kernel at a weight of a half, moves twice as
  far in a step as one kernel does. The static network at twice the rate and half the decay, which is the same, gains
  0.9. Copies whose routers hardly move (a tenth of the rate) gain 1.4, those whose routers do, 3.8 on the same seed.
- **And 0.1 is too low a rate for everybody.** At 0.2 the static network has 64.5 (two seeds) and copies have 67.0 (one
  seed, 2.2 points above its static twin); 0.4 is too much for both (60.0 and 64.2, one seed).
"""
EXPERTS_MERGED = """\
## Experts that grow together

What nine routers and their experts have come to after forty epochs of MobileNetV1 0.12x with SGD, at the rate of
everything else. **In five of the nine blocks the experts are one kernel again**: their cosine similarity is 0.998 or
more, and to route all images by the mean weights costs nothing there. That is weight decay: the sum of rate and decay
over all updates, with momentum, is 7.8, which leaves a difference between experts that nothing feeds a 2400th of what
it was. What feeds it is routing that differs from image to image, and routers learn from what experts differ by: each
waits for the other. In the first block, and in the classifier, they got under way.

To let the experts' mean decay alone, and not what they differ by, keeps them apart (similarity 0.0 to 0.7 after ten
epochs) and does not help: routers differ no more from image to image, 61.7 % instead of 61.9, one seed (a trial
outside this package's options; no file has it). What does is a higher rate of the routers, on maps with pixels: the
first section.
"""
WHERE_ROUTING_LEARNS = """\
## Looking for a setting in which routing brings something

If the routing is what is missing, more of it should help. It does not, in ten epochs:

- **The static network at twice the rate**, at which its kernels move as far in a step as a sum of eight copies, has
  59.9, 60.1 and 60.2 with the decay of the others, and 57.6, 61.3 and 60.8 with half of it, where its kernels do what
  such a sum does (its norms and first layers, which have no experts elsewhere, move twice as far too). At the rate of
  all others it has 60.2, 60.4 and 62.5. With experts from the first layer on and all images alike (above), every kernel
  moves as in the second of these three, and only the norms keep their rate: 63.6, 63.2 and 62.0. That is three points
  more in the mean, and the spread of the seeds (6.3 each way) lets it be chance.
- **Routers at ten times the rate**: the weights of two images differ 2.7 times as much in the median (copies far apart)
  or 1.3 times (independent experts), and the accuracy changes by -0.5 and -1.1 points, within what two seeds differ by.
- **AdamW**, whose steps do not shrink with the gradient, makes the first two routers 2 to 9 times as sharp, and most of
  the later ones flatter. One seed at one rate: the static network gains 0.8 points over SGD's, and those with experts
  are behind it, copies by 0.7, independent experts by 2.5, copies far apart by 8; mixed alike for all images, copies by
  0.9 and independent experts not at all. Seeds of independent experts are up to five points apart with SGD, so that
  only the last can be called worse.
- The training loss of ten epochs with SGD (tables above) says as little: static 1.35, copies with routing 1.32, far
  apart 1.31, mixed alike 1.31.

One seed where nothing else is said. The routing weights' spread is over 1000 validation images, the mean over a layer's
experts; the table has the median of the nine routers, the least and the largest.
"""
KERNELS_APART = """\
## How far apart the kernels of two images are

If all images are routed alike, experts are a static network each of whose kernels is a sum. How much they are not
shows in the kernels: the deviation of an image's own from their mean, relative to the mean's norm (root mean square
over 1000 validation images; the table has the median of the 17 layers, the least and the largest).

- **At 32 pixels and 8 epochs routers that learn brought nothing**: 68.8 with routers that stay where they start, 68.8
  with routers that learn, one seed each. Kernels 2 to 7 % apart (experts five times as different at the start), or 4
  to 10 % (a batch norm before each router), have 68.5 and 69.1, one seed each.
- **At 16 pixels, where the network is the bottleneck, all four starts with experts are above the static network**, by
  1.6 to 4.1 points, with a lower training loss. One seed each. With the package's own augmentation, which has no crops
  here, less is left of it (above).
- **The rate.** Copies whose routing starts at one half move E / 4 times as far in a step of SGD as one kernel does, for
  8 experts twice; at 1 / √E they move as far. The rows that say so start there.
"""
ROUTING_LOST = """\
## Routing that was lost, and why

In a plain training loop torch's optimizers decay all parameters they are given, biases and norms among them. At 5e-4,
which is usual for small images, that is good for the static network: with a tenth of it, it loses seven points, since
kernels before a batch norm grow without decay, and learn the slower the larger they are. But no norm follows a router.
There the same decay draws the weights towards zero, where all images are routed alike. After twelve epochs the
routing weights of an expert differed from image to image by less than a hundredth (standard deviation over 1000
validation images, mean over the experts of a layer; the table has the median of the nine routers, the smallest and the
largest): a static network each of whose kernels is a sum. Left out of the decay, the routers keep three times as
much, and the network is a point better. One seed each.

`condconv train` decays neither biases nor norms, and there the routing is kept with decaying routers too; whether
`--no-router-decay` helps there is not settled.
"""


def spent(records: Sequence[RunRecord]) -> str:
    """Say on what machine the runs were made, and in how much time."""
    machine = records[0].machine
    hours = sum(record.seconds for record in records) / 3600
    return (
        f"{len(records)} runs, {hours:.1f} hours of one core of a shared x86 machine, torch {machine['torch']}, "
        f"Python {machine['python']}."
    )


def curves(experiment: Experiment, records: Sequence[RunRecord]) -> str:
    """Return the score after each epoch, at most eight of them, as a Markdown table: the mean over the seeds.

    Of several members it is the first one's, and of snapshots that of each in its epochs.
    """
    epochs = max(len(record.curve[0]) for record in records)
    step = -(-epochs // 8)
    shown = range(epochs % step or step, epochs + 1, step)
    lines = [["network", *(f"epoch {epoch}" for epoch in shown)]]
    for arm in experiment.arms:
        own = [record.curve for record in records if record.label == arm.label]
        found = [tuple(chain(*each)) if arm.chained else each[0] for each in own]
        if found:
            means = [100 * sum(curve[epoch - 1] for curve in found) / len(found) for epoch in shown]
            lines.append([arm.label, *(f"{mean:.1f}" for mean in means)])
    return as_markdown(lines)


def section(name: str) -> str:
    """Return the section of one experiment: its text, the picture, the table, and where all of it is from."""
    source = SOURCES / f"{name}.json"
    experiment, records = read(source)
    command = json.loads(source.read_text(encoding="utf-8"))["command"]
    rows = summarise(experiment, records)
    return "\n\n".join(
        (
            TEXTS[name].strip(),
            f"![{experiment.title}](assets/results-{name}.png)",
            table(rows, experiment.metric),
            f"Mean ± standard deviation over the seeds, after the last epoch; differences {compared(rows)}, seed by "
            f"seed. {experiment.note} Accuracy after epochs on the way, in percent, means over the seeds:".replace(
                "  ", " "
            ),
            curves(experiment, records),
            f"{spent(records)} Source: `{source.relative_to(ROOT).as_posix()}`, made by",
            f"```bash\n{command}\n```",
        )
    )


def trials(source: Path, columns: Mapping[str, Callable[[Mapping[str, Any]], str]]) -> str:
    """Return single trials as a Markdown table, given what each column shows of one, and where they are from."""
    record = json.loads(source.read_text(encoding="utf-8"))
    lines = [[show(run) for show in columns.values()] for run in record["runs"]]
    settings = f"Settings: {record['settings']}. Source: `{source.relative_to(ROOT).as_posix()}`."
    return f"{as_markdown([list(columns), *lines])}\n\n{settings}"


def top1(run: Mapping[str, Any]) -> str:
    """Return a trial's last accuracy in percent."""
    return f"{100 * run['top1'][-1]:.1f}"


def routing_spread(run: Mapping[str, Any]) -> str:
    """Return the median over a trial's routers, with the least and the largest; nothing for a static network."""
    spreads = run.get("routing_spread")
    return "" if spreads is None else f"{median(spreads):.3f} [{min(spreads):.3f} {max(spreads):.3f}]"


ENDS: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "last training loss": lambda run: f"{run['train_loss'][-1]:.3f}",
    "top-1 (%)": top1,
    "spread of the routing weights": routing_spread,
}
"""Columns of what a trial came to."""


def kernels_apart() -> str:
    """Return the section on how much kernels depend on the image."""

    def apart(run: Mapping[str, Any]) -> str:
        found = run.get("kernel_spread")
        return "" if found is None else f"{100 * median(found):.1f} [{100 * min(found):.1f} {100 * max(found):.1f}]"

    columns = {
        "start": lambda run: run["what"],
        "pixels": lambda run: str(run["image_size"]),
        "epochs": lambda run: str(run["epochs"]),
        **ENDS,
        "kernels apart (%)": apart,
    }
    return "\n\n".join((KERNELS_APART.strip(), trials(ROUTING, columns)))


def routing_lost() -> str:
    """Return the section on what weight decay does to the routing."""
    columns = {
        "12 epochs": lambda run: run["what"],
        "weight decay": lambda run: f"{run['weight_decay']:g}",
        **ENDS,
    }
    return "\n\n".join((ROUTING_LOST.strip(), trials(TRIALS, columns)))


def experts_merged() -> str:
    """Return the section on what long training makes of experts."""
    columns = {
        "block": lambda run: run["what"],
        "spread of the routing weights": lambda run: f"{run['weights_spread']:.3f}",
        "similarity of the experts": lambda run: f"{run['experts_similarity']:.3f}",
        "points with mean weights": lambda run: f"{run['points_with_mean_weights']:+.1f}",
    }
    return "\n\n".join((EXPERTS_MERGED.strip(), trials(MERGED, columns)))


def regimes() -> str:
    """Return the section on settings that make routing sharper."""
    columns = {
        "network": lambda run: run["what"],
        "optimizer": lambda run: f"{run['optimizer']}, {run['lr']:g}",
        "seed": lambda run: str(run["seed"]),
        **ENDS,
    }
    return "\n\n".join((WHERE_ROUTING_LEARNS.strip(), trials(REGIMES, columns)))


def pairs(experiment: Experiment, records: Sequence[RunRecord]) -> list[tuple[Arm, Arm]]:
    """Return which networks of an experiment to compare in short: where it is about the control, with that too."""
    labels = {arm.label: arm for arm in experiment.arms}
    if {record.label for record in records} == {experiment.arms[0].label, "static", CONTROL}:
        routed, static, control = experiment.arms[0], labels["static"], labels[CONTROL]
        return [(routed, static), (control, static), (routed, control)]
    found = [(arm, against) for arm in experiment.arms if (against := experiment.reference(arm)) is not None]
    controls = ((arm, f"{arm.label.partition(', routers')[0]}, all images alike") for arm in experiment.arms)
    return found + [(arm, labels[control]) for arm, control in controls if control in labels]


def summary() -> str:
    """Return what all experiments found, a line for each network that is compared with another."""
    header = ["experiment", "epochs", "network", "over", "difference", "95 % interval", "seeds"]
    lines = [[*header, "training loss", "95 % interval"]]
    for name in TEXTS:
        experiment, records = read(SOURCES / f"{name}.json")
        title = TEXTS[name].splitlines()[0].removeprefix("## ")
        for arm, against in pairs(experiment, records):
            points = differences(records, arm, against)
            if not points:
                continue
            kept = all(record.loss_curve for record in records)
            losses = differences(records, arm, against, last_loss) if kept else []
            epochs = str(len(next(record.curve[0] for record in records if record.label == arm.label)))
            cells = [*mean_and_interval(points, 2), str(len(points)), *mean_and_interval(losses, 3)]
            lines.append([title, epochs, arm.label, against.label, *cells])
    return "\n\n".join((SUMMARY.strip(), as_markdown(lines)))


def mean_and_interval(differences: Sequence[float], digits: int) -> tuple[str, str]:
    """Return the mean of differences, and from three of them on its 95 % interval; that of points with one digit."""
    if not differences:
        return "", ""
    middle, form = mean(differences), f"+.{digits - (digits == 2)}f"
    width = confidence_half_width(differences) if len(differences) > 2 else None
    interval = "" if width is None else f"{middle - width:{form}} to {middle + width:{form}}"
    return f"{middle:+.{digits}f}", interval


def experts_start() -> str:
    """Return the section on how experts start."""
    columns = {
        "start": lambda run: run["what"],
        "learning rate": lambda run: f"{run['lr']:g}",
        "weight decay": lambda run: f"{run['weight_decay']:g}",
        "seed": lambda run: str(run["seed"]),
        **ENDS,
    }
    return "\n\n".join((EXPERTS_START.strip(), trials(COPIES, columns)))


def diagnosis() -> str:
    """Return the section on where the classifier starts, and what follows from it."""
    columns = {
        "start": lambda run: run["what"],
        "network": lambda run: f"`{run['model']}`",
        "epochs": lambda run: str(run["epochs"]),
        "top-1 (%)": top1,
    }
    return "\n\n".join((DIAGNOSIS.strip(), trials(STARTS, columns), LESSONS.strip()))


def page() -> str:
    """Return the page."""
    return (
        "\n\n".join(
            (
                INTRO.strip(),
                summary(),
                *map(section, TEXTS),
                experts_merged(),
                regimes(),
                kernels_apart(),
                experts_start(),
                routing_lost(),
                diagnosis(),
            )
        )
        + "\n"
    )


def draw_all() -> None:
    """Draw the picture of each file."""
    for name in TEXTS:
        experiment, records = read(SOURCES / f"{name}.json")
        plot(experiment, summarise(experiment, records), ASSETS / f"results-{name}.png")


if __name__ == "__main__":
    sys.exit(write_or_check(PAGE, page, draw_all))
