"""Write docs/zoo.md and docs/paper.md from the registry: every network with its costs and the paper's.

`python scripts/make_zoo.py` writes the pages, `--check` says whether they are up to date.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from condconv import count, create_model, get_model_info, list_models
from condconv.models import TABLE_3, TABLE_4, Ablation, PaperRow
from condconv.models.families import FAMILIES

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # of a script, only its own folder is on the path
from scripts.page import write_or_check
from scripts.tf_profiler import profiler_madds

PAGE = Path(__file__).resolve().parent.parent / "docs" / "zoo.md"
PAPER_PAGE = PAGE.with_name("paper.md")

INTRO = """\
# The paper's networks

`condconv.create_model(name)` makes a network. A static one is called `<family>_<size>`, its conditional form with E
experts `<family>_cc_<size>_<E>e`. Any number of experts works, and if the size is a width in percent, any width:
`mobilenet_v2_cc_060_6e`. ResNet also has 18, 34, 101 and 152 (`resnet_cc_18_4e`), `efficientnet` and `tf_efficientnet`
have b0 to b8. `condconv models` and `condconv.list_models()` list those below.

```python
import condconv

model = condconv.create_model("mobilenet_v1_cc_050_8e", num_classes=10)
info = condconv.get_model_info("mobilenet_v1_cc_100_8e")
print(info.paper.madds, info.paper.top1)  # 600 73.7
```

All are timm's networks with experts added, and need the extra `models`. Channels are rounded as in timm, to multiples
of 8; ResNet is v1.5, which strides in the 3 × 3 convolutions. `pretrained=True` starts from
[trained weights](weights.md#download-pretrained-weights-pretrainedtrue).
"""

PLACEMENTS = """\
## Where experts are

`first_layer`, `conditional_head` and `conditional_classifier` of `create_model` change it. Layers are counted as in the
paper: 1 is the stem, each block is one layer, a 1 × 1 convolution after the blocks (the head) is one, and the
classifier is the last. Squeeze-and-excitation stays static. The paper has ResNet-50 and EfficientNet-B0 only; in their
other sizes the choice of layers is ours, and for MobileNetV2 [the paper does not say](paper.md#mobilenetv2).

"""

COSTS = """\
## Costs and accuracy

Multiply-adds (MADDs) are for one image of 224 × 224 pixels and 1000 classes: convolutions, linear layers (also those of
the routing), and `E · P` for mixing E kernels of P parameters, as in `condconv.count`. [The paper](paper.md) counts
differently: compare "as the paper" with "printed".

Top-1 is ImageNet accuracy as published; we have not trained these networks on ImageNet. Tables and figures are the
paper's. Figure 2 was read to 0.2 points, and disagrees with the tables: at width 1.0 with 8 experts Table 1 has 73.7
and Figure 2 about 75.2, so 4 experts, which only the figure has, are above 8 here; for static MobileNetV1 0.25x Table 4
has 50.0.
"""

TIMM = """\
## Use them in timm

`condconv.register_timm_models()` adds the networks to timm's registry, with the prefix `condconv_`:

```python
import timm

condconv.register_timm_models()
backbone = timm.create_model("condconv_mobilenet_v1_cc_050_8e", features_only=True, out_indices=(2, 3, 4))
```

Scripts that call `timm.create_model`, such as timm's `train.py`, find them if run through a module of this package:

```bash
python -m condconv.models.with_timm train.py --data-dir imagenet/ --model condconv_mobilenet_v1_cc_050_8e
torchrun --nproc_per_node 8 -m condconv.models.with_timm train.py --data-dir imagenet/ --model condconv_resnet_cc_50_8e
```

Number of classes, input channels, `features_only`, tags of weights and `timm.models.save_for_hf` work as with timm's
networks, and so do the arguments of `condconv.create_model`. Exceptions:

- `feature_cls="fx"` is refused for conditional networks, since its trace holds the static layers; the default, `"hook"`
  and `"getter"` work, and `"list"` is timm's for ResNets only.
- Set the number of classes when you create the network: `reset_classifier` replaces a conditional classifier by a new
  static layer.
- timm's `checkpoint_path` reads files of these networks only; [`load_pretrained`](weights.md) also reads those of
  timm's own conditional networks.
- `*_b0_depth` is for images of 224 pixels, as in the paper; timm's static B1, whose weights `pretrained=True` loads,
  was trained on 240 or more.
"""

PAPER = """\
# The paper's figures, recomputed

`scripts/make_zoo.py` writes this page and [The paper's networks](zoo.md), whose table compares every network. The
paper's multiply-adds are half of what TensorFlow 1's profiler reports, which adds element-wise operations, poolings and
biases. `scripts/tf_profiler.py` gives this count, and agrees with the profiler itself to the operation on MobileNetV1
and EfficientNet-B0.
"""

MOBILENET_V2 = """\
## MobileNetV2

The sources do not say which of its layers have experts; the paper prints 329M for 8 experts. The table has
multiply-adds (as in the paper) and parameters of each choice. The default is layer 8 with head and classifier. Layers
6, 7 and 8 all give 329M, so the figure does not decide between them:

"""

TABLES = """\
## The paper's ablations

CC-MobileNetV1 0.25x with 32 experts and 1001 classes. In these rows the product of the conditional classifier is not
counted (`batched_products=False`). This is our interpretation: TensorFlow computes it as `BatchMatMul`, for which its
profiler had no formula when the paper was written, and it reproduces the printed digits of all rows but two.
"""


@functools.cache
def measure(name: str, num_classes: int, batched_products: bool, options: tuple[tuple[str, Any], ...] = ()) -> Any:
    """Return parameters, MADDs, and MADDs as the paper counts, of a network."""
    model = create_model(name, num_classes=num_classes, **dict(options))
    image = torch.zeros(1, 3, 224, 224)  # computed: on the meta device most layers are slower
    total = count(model, image).total
    return total.params, total.madds, profiler_madds(model, image, batched_products=batched_products)


def measure_row(name: str, row: PaperRow, options: Mapping[str, Any] | None = None) -> Any:
    """Return what `measure` gives, in the convention of a row."""
    return measure(name, row.num_classes, row.batched_products, tuple((options or {}).items()))


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table, the first column and a last one of text aligned to the left, the others to the right."""
    last = "---" if any(row[-1][:1].isalpha() for row in rows) else "---:"
    lines = [header, ["---"] + ["---:"] * (len(header) - 2) + [last], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def costs() -> str:
    """Return the table of all listed networks."""
    rows = []
    for name in list_models():
        row = get_model_info(name).paper or PaperRow("", 0)
        params, madds, profiled = measure_row(name, row)
        printed = [] if row.madds is None else [f"{row.madds:.0f}M", f"{profiled / 1e4 / row.madds - 100:+.2f} %"]
        rows.append(
            [
                f"`{name}`",
                f"{params / 1e6:.2f}M" + (f" ({row.params}M)" if row.params else ""),
                f"{madds / 1e6:.1f}M",
                f"{profiled / 1e6:.1f}M",
                *(printed or ["", ""]),
                f"{row.top1:.1f} %" if row.top1 else "",
                row.source.removeprefix("CondConv, ").removesuffix(", read off"),
            ]
        )
    header = [
        "name",
        "params (printed)",
        "MADDs",
        "as the paper",
        "printed",
        "as the paper / printed",
        "top-1",
        "source",
    ]
    return table(header, rows)


def ablations(title: str, ablation: Sequence[Ablation]) -> str:
    """Return the table of an ablation."""
    rows = []
    for each in ablation:
        _, madds, profiled = measure_row(each.name, each.row, each.options)
        options = ", ".join(f"`{key}={_text(value)}`" for key, value in each.options.items())
        rows.append(
            [
                each.label,
                options or f"`{each.name}`",
                f"{madds / 1e6:.2f}M",
                f"{profiled / 1e6:.2f}M",
                f"{each.row.madds}M",
                f"{each.row.top1} %",
            ]
        )
    return table([title, "arguments of `create_model`", "MADDs", "as the paper", "printed", "top-1"], rows)


def _text(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else repr(value)


def misses() -> str:
    """Return the list of the rows that do not come out."""
    rows: list[tuple[str, str, Mapping[str, Any], PaperRow | None]]
    rows = [(name, name, {}, get_model_info(name).paper) for name in list_models()]
    rows += [(f"{each.row.source}, {each.label}", each.name, each.options, each.row) for each in (*TABLE_3, *TABLE_4)]
    found: dict[str, list[str]] = {}
    for title, name, options, row in rows:
        if row is not None and row.miss is not None:
            _, madds, profiled = measure_row(name, row, options)
            digits = 0 if row.num_classes == 1000 else 1
            figures = f"{row.madds:.{digits}f}M printed, {madds / 1e6:.2f}M counted, {profiled / 1e6:.2f}M as the paper"
            found.setdefault(row.miss, []).append(f"- **{title}**: {figures}.")
    text = "Rows of the paper whose multiply-adds do not come out to the last printed digit:\n"
    parts = ["\n".join((*lines, "", f"{reason[0].upper()}{reason[1:]}.\n")) for reason, lines in found.items()]
    return "\n".join(("## What does not come out\n", text, *parts))


def placements() -> str:
    """Return where each family has its experts."""
    rows = []
    for family in FAMILIES.values():
        size = next(iter(family.listed))
        layers = family.layers(create_model(f"{family.name}_{size}"))
        first = layers.index(family.first_block)
        blocks = [name for name in layers if name not in (family.stem, family.head, family.classifier)]
        head = "-" if family.head is None else "experts" if family.conditional_head else "static"
        classifier = "experts" if family.conditional_classifier else "static"
        rows.append(
            [
                f"`{family.name}`, {size}",
                f"{first + 1} of {len(layers)} (`{family.first_block}`)",
                f"{len(blocks) - blocks.index(family.first_block)} of {len(blocks)}",
                head,
                classifier,
                family.source,
            ]
        )
    header = ["family, size", "first layer", "blocks", "head", "classifier", "source"]
    return PLACEMENTS + table(header, rows)


def mobilenet_v2_choices() -> str:
    """Return what each choice of layers costs MobileNetV2."""
    rows = []
    for first in (6, 7, 8, 9, 10, 13):
        cells = []
        for head, classifier in ((True, True), (False, True), (True, False), (False, False)):
            params, profiled = mobilenet_v2_costs(first, head, classifier)
            cells.append(f"{profiled / 1e6:.1f}M, {params / 1e6:.1f}M")
        rows.append([f"{first} (block {first - 1})", *cells])
    header = ["first layer", "head and classifier", "classifier", "head", "blocks alone"]
    return MOBILENET_V2 + table(header, rows)


def mobilenet_v2_costs(first: int, head: bool, classifier: bool) -> tuple[int, int]:
    """Return parameters and MADDs as the paper counts of a choice of layers of CC-MobileNetV2.

    What the experts of head and classifier cost does not depend on the first layer: it is measured once.
    """

    def costs_of(**options: Any) -> tuple[int, int]:
        params, _, profiled = measure("mobilenet_v2_cc_100_8e", 1000, True, tuple(options.items()))
        return params, profiled

    params, profiled = costs_of(first_layer=first)
    for argument, conditional in (("conditional_head", head), ("conditional_classifier", classifier)):
        if not conditional:
            of_all, without = costs_of(first_layer=8), costs_of(first_layer=8, **{argument: False})
            params, profiled = params - of_all[0] + without[0], profiled - of_all[1] + without[1]
    return params, profiled


def page() -> str:
    """Return the page of the networks."""
    return "\n".join((INTRO, TIMM, placements(), COSTS, costs()))


def paper() -> str:
    """Return the page of the paper's figures."""
    ablated = (ablations("routing (Table 3)", TABLE_3), ablations("first layer (Table 4)", TABLE_4))
    return "\n".join((PAPER, mobilenet_v2_choices(), TABLES, *ablated, misses()))


if __name__ == "__main__":
    sys.exit(max(write_or_check(PAGE, page), write_or_check(PAPER_PAGE, paper)))
