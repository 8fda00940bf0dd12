"""Write docs/results.md and its pictures from what `condconv experiment` left.

`python scripts/make_results.py` reads benchmarks/results/experiments/*.json, which are the `records.json` of
experiments, and single trials in benchmarks/results; `--check` says whether the page is up to date.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from condconv.experiments.comparison import as_markdown
from condconv.experiments.design import Experiment
from condconv.experiments.runs import RunRecord
from condconv.experiments.tables import plot, read, summarise, table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # of a script, only its own folder is on the path
from scripts.page import write_or_check

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "results.md"
SOURCES = ROOT / "benchmarks" / "results" / "experiments"
STARTS = ROOT / "benchmarks" / "results" / "classifier-start.json"
TRIALS = ROOT / "benchmarks" / "results" / "router-trials.json"
ASSETS = ROOT / "docs" / "assets"

INTRO = """\
# Results

What the networks reach when they are trained with this package, whether or not it agrees with the paper. This page is
written by `scripts/make_results.py` from the records that `condconv experiment` leaves; a test compares it with what it
would write now.

All of it is small: CIFAR-10 (50,000 images to train and 10,000 to validate, 32 × 32 pixels, as JPEG files), MobileNetV1
of a quarter of the width with `output_stride=16`, and six epochs, which one core does in five to seven minutes. Six
epochs are far too few for a final accuracy; a run of sixty would be another experiment. The paper's figures are for
ImageNet, and stand beside ours for the direction only.
"""
TEXTS = {
    "experts-width": """\
## Static and conditional, six epochs

No gain: over three seeds the network with eight experts is two points below the static one, which is within the spread
from seed to seed. Both are far from what they could learn: the accuracy of each still rises with every epoch. Whether
experts are ahead after sixty epochs, as the paper's are after hundreds, these runs cannot say.
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
- It was not the router: neither a tenth of its learning rate nor a start at zero helped. Clipping the gradient norm
  hid a part of it.
- Look at the first loss of your own training. It should be close to the logarithm of the number of classes before any
  gain can be expected.

## What is not measured yet

Longer training, more widths and numbers of experts, and the experiments `begin-layer`, `routing` and `ensembles` on
these images. Six epochs say nothing about the paper's three hundred: a network that cannot yet fit its training
images has little use for more kernels.
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
    """Return the score after each epoch as a Markdown table, the mean over seeds of the first member."""
    epochs = max(len(record.curve[0]) for record in records)
    lines = [["network", *(f"epoch {epoch}" for epoch in range(1, epochs + 1))]]
    for arm in experiment.arms:
        found = [record.curve[0] for record in records if record.label == arm.label]
        if found:
            means = [100 * sum(curve[epoch] for curve in found) / len(found) for epoch in range(len(found[0]))]
            lines.append([arm.label, *(f"{mean:.1f}" for mean in means)])
    return as_markdown(lines)


def section(name: str) -> str:
    """Return the section of one experiment: its text, the picture, the table, and where all of it is from."""
    source = SOURCES / f"{name}.json"
    experiment, records = read(source)
    command = json.loads(source.read_text(encoding="utf-8"))["command"]
    return "\n\n".join(
        (
            TEXTS[name].strip(),
            f"![{experiment.title}](assets/results-{name}.png)",
            table(summarise(experiment, records), experiment.metric),
            "Mean ± standard deviation over the seeds, after the last epoch; differences seed by seed. Accuracy after "
            "each epoch, in percent, means over the seeds:",
            curves(experiment, records),
            f"{spent(records)} Source: `{source.relative_to(ROOT).as_posix()}`, made by",
            f"```bash\n{command}\n```",
        )
    )


def routing_lost() -> str:
    """Return the trials on what weight decay does to the routing."""
    record = json.loads(TRIALS.read_text(encoding="utf-8"))
    header = ["12 epochs", "weight decay", "last training loss", "top-1 (%)", "spread of the routing weights"]
    lines = []
    for run in record["runs"]:
        spreads = run.get("routing_spread")
        shown = "" if spreads is None else f"{median(spreads):.3f} [{min(spreads):.3f} {max(spreads):.3f}]"
        score = f"{100 * run['top1'][-1]:.1f}"
        lines.append([run["what"], f"{run['weight_decay']:g}", f"{run['train_loss'][-1]:.3f}", score, shown])
    settings = f"Settings: {record['settings']}. Source: `{TRIALS.relative_to(ROOT).as_posix()}`."
    return "\n\n".join((ROUTING_LOST.strip(), as_markdown([header, *lines]), settings))


def diagnosis() -> str:
    """Return the section on what made the difference."""
    record = json.loads(STARTS.read_text(encoding="utf-8"))
    header = ["start", "network", "epochs", "top-1 (%)"]
    lines = [
        [run["what"], f"`{run['model']}`", str(run["epochs"]), f"{100 * run['top1'][-1]:.1f}"] for run in record["runs"]
    ]
    settings = f"Settings: {record['settings']}. Source: `{STARTS.relative_to(ROOT).as_posix()}`."
    return "\n\n".join((DIAGNOSIS.strip(), as_markdown([header, *lines]), settings, LESSONS.strip()))


def page() -> str:
    """Return the page."""
    return "\n\n".join((INTRO.strip(), *map(section, TEXTS), diagnosis())) + "\n"


def draw_all() -> None:
    """Draw the picture of each file."""
    for name in TEXTS:
        experiment, records = read(SOURCES / f"{name}.json")
        plot(experiment, summarise(experiment, records), ASSETS / f"results-{name}.png")


if __name__ == "__main__":
    sys.exit(write_or_check(PAGE, page, draw_all))
