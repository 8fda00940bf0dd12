"""Time quantized experts, in layers and in a whole network, and see what they change in networks trained on digits.

    python benchmarks/quantized.py --runs runs/digits --output benchmarks/results/quantized-cpu.json

Times are those of one image on one thread: the static twin, experts in fp32, in bfloat16 and in int8, by turns, each in
its better layout. Ratios are to the static twin: the median over the repetitions of ratios taken within a repetition,
with the quartiles; and, for a machine that is not left alone, the ratio of the fastest repetitions. An output that
differs from the reference's with the same experts stops the run. Short calls are repeated, so experts that fit into the
processor's caches are in them.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from condconv import quantize_experts_
from condconv.lab.bench.cases import LAYERS, LayerCase, NetworkCase
from condconv.lab.bench.timing import keep_freed_memory, ratio, time_by_turns
from condconv.lab.data import open_data
from condconv.lab.saved import load_checkpoint, load_network
from condconv.lab.train import train
from condconv.nn import CondConv2d
from condconv.ops import cond_conv2d
from condconv.ops.native.library import instruction_set

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # of a script, only its own folder is on the path
from benchmarks import digits_networks

KINDS = ("fp32", "bfloat16", "int8")
NETWORK = NetworkCase("tf_efficientnet_cc_b0_8e")


def make_layers(case: LayerCase) -> tuple[nn.Module, dict[str, CondConv2d], tuple[Tensor, ...]]:
    """Return the static twin, the conditional layer with each kind of experts, and the arguments of a call."""
    trio = case.make(1)
    layers: dict[str, Any] = {kind: copy.deepcopy(trio.ours) for kind in KINDS}
    for kind in KINDS[1:]:
        quantize_experts_(layers[kind], kind)
    for kind, layer in layers.items():
        expected = cond_conv2d(
            trio.inputs[0],
            layer.experts_fp64().float(),
            trio.inputs[1],
            padding=layer.padding,
            groups=layer.groups,
            impl="reference",
        )
        if (layer(*trio.inputs) - expected).abs().max() > 1e-4 * expected.abs().max():
            sys.exit(f"{kind} differs from the reference on {case.name}: not timed")
    return trio.static, layers, trio.inputs


def measure(case: LayerCase, repetitions: int) -> dict[str, Any]:
    """Return one row of a layer."""
    static, layers, (x, routing) = make_layers(case)
    calls: dict[str, Callable[[], object]] = {}
    for name, layout in (("", torch.contiguous_format), (" channels_last", torch.channels_last)):
        source = x.contiguous(memory_format=layout)
        twin = copy.deepcopy(static).to(memory_format=layout)
        calls[f"static{name}"] = partial(twin, source)
        for kind, layer in layers.items():
            calls[kind + name] = partial(layer, source, routing)
    return {"layer": case.name, "expert_bytes": case.expert_bytes} | time_kinds(calls, repetitions)


def measure_network(repetitions: int) -> dict[str, Any]:
    """Return the same of a whole network, which computes its routing weights itself."""
    trio = NETWORK.make(1)
    networks: dict[str, Any] = {"static": trio.static}
    for kind in KINDS:
        networks[kind] = copy.deepcopy(trio.ours)
        if kind != "fp32":
            quantize_experts_(networks[kind], kind)
    calls: dict[str, Callable[[], object]] = {}
    for name, layout in (("", torch.contiguous_format), (" channels_last", torch.channels_last)):
        for kind, network in networks.items():
            laid_out = copy.deepcopy(network).eval().to(memory_format=layout)
            calls[kind + name] = partial(laid_out, trio.inputs[0].contiguous(memory_format=layout))
    return {"network": NETWORK.name, "expert_bytes": NETWORK.expert_bytes} | time_kinds(calls, repetitions)


def time_kinds(calls: dict[str, Callable[[], object]], repetitions: int) -> dict[str, Any]:
    """Return the static twin's milliseconds, and ratio and quartiles of each kind, each in its better layout."""
    times = time_by_turns(calls, repetitions, seconds=0.004)  # short, so that some are not interrupted
    best = {kind: min(times[kind], times[f"{kind} channels_last"], key=min) for kind in ("static", *KINDS)}
    row: dict[str, Any] = {"static_ms": round(1e3 * min(best["static"]), 4)}
    for kind in KINDS:
        found = ratio(best[kind], best["static"])
        row[kind] = {
            "median": round(found.median, 3),
            "quartiles": [round(found.low, 3), round(found.high, 3)],
            "fastest": round(min(best[kind]) / min(best["static"]), 3),
        }
    return row


def compare_networks(runs: Path) -> list[dict[str, Any]]:
    """Return for each seed's conditional network what the kinds of experts make of the validation images."""
    data = open_data(digits_networks.settings(runs, digits_networks.CONDITIONAL, 0))
    images, labels = zip(*(data.val[index] for index in range(len(data.val))), strict=True)
    batch, wanted = torch.stack(images), torch.tensor(labels)
    rows = []
    for seed in digits_networks.SEEDS:
        path = train(digits_networks.settings(runs, digits_networks.CONDITIONAL, seed)).last
        network = load_network(load_checkpoint(path), path).eval()
        expected = network(batch)
        for kind in KINDS:
            quantized = copy.deepcopy(network)
            report = None if kind == "fp32" else quantize_experts_(quantized, kind)
            output = quantized(batch)
            row = {"seed": seed, "experts": kind, "images": len(wanted)}
            row["right"] = int((output.argmax(1) == wanted).sum())
            row["other_answers"] = int((output.argmax(1) != expected.argmax(1)).sum())
            row["largest_logit"] = round(expected.abs().max().item(), 3)
            row["largest_change"] = round((output - expected).abs().max().item(), 4)
            rows.append(row | ({} if report is None else {"bytes": [report.bytes_before, report.bytes_after]}))
            print(rows[-1], flush=True)
    return rows


@torch.inference_mode()
def main() -> None:
    """Measure all layers, compare the networks, print a line each and write the file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=Path, required=True, help="directory of the trainings; finished ones are kept")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--repetitions", type=int, default=30)
    parser.add_argument("--note", help="what else there is to know of the machine")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    keep_freed_memory()
    networks = compare_networks(arguments.runs)
    layers = []
    for case in LAYERS:
        layers.append(measure(case, arguments.repetitions))
        print(layers[-1], flush=True)
    network = measure_network(arguments.repetitions)
    print(network, flush=True)
    record = {
        "command": " ".join(["python", *sys.argv]),
        "machine": platform.machine(),
        "instructions": instruction_set(),
        "threads": 1,
        "torch": torch.__version__,
        "repetitions": arguments.repetitions,
        "note": arguments.note,
        "networks": networks,
        "layers": layers,
        "network": network,
    }
    arguments.output.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
