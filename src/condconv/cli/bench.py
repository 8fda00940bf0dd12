"""`condconv bench`: what experts cost, compared with the static twin, timm's CondConv2d and the bound."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from condconv.cli.parsing import add_option
from condconv.errors import MissingExtraError, UsageError, command_line, first_line, shown
from condconv.files.atomic import write_atomic
from condconv.files.paths import check_can_write
from condconv.lab.rules import PATH, TEXT, one_of, whole

_RUNTIMES = (
    "torch-export",
    "aoti",
    "onnx",
    "openvino",
)  # as in `condconv.lab.bench.runtimes`, which --help does not import
_REPETITIONS = 15
_QUICK_REPETITIONS = 5


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the command to the parser."""
    parser = subparsers.add_parser(
        "bench",
        help="measure what experts cost on this machine",
        description="Times conditional layers and networks in turn with their static twins and timm's CondConv2d. "
        "Outputs are compared with the reference in fp64 first; wrong ones are not timed. Ratios are medians over the "
        "repetitions, with quartiles. The bound is (HW + E) / HW: multiply-adds with experts divided by those without. "
        "Without options it times every listed layer and network, which takes hours on a CPU.",
    )
    parser.add_argument("--quick", action="store_true", help="time a short list only: under five minutes on two cores")
    parser.add_argument("--call", action="store_true", help="time a layer too small to take time, and nothing else")
    text = "layers whose names match, such as '*1x1*'; 'all' adds those of the networks"
    add_option(parser, "--layers", TEXT, text, metavar="PATTERN")
    add_option(parser, "--networks", TEXT, "networks whose names match, such as '*b0*'", metavar="PATTERN")
    text = "time networks with these experts, such as 'shared(rank=8)' (default: dense)"
    add_option(parser, "--experts", TEXT, text, metavar="NAME")
    add_option(parser, "--mode", one_of("inference", "training"), "measure only this mode (default: both)")
    text = "implementation of the layers with experts, as in cond_conv2d (default: auto)"
    add_option(parser, "--impl", TEXT, text, metavar="NAME")
    text = "time networks as exported files, and their static twins in the same runtime"
    add_option(parser, "--runtime", one_of(*_RUNTIMES), text)
    add_option(parser, "--threads", whole(1, 4096), "CPU threads (default: torch's)", metavar="N")
    text = f"measurements of each time (default: {_REPETITIONS}, with --quick {_QUICK_REPETITIONS})"
    add_option(parser, "--repetitions", whole(1), text, metavar="N")
    add_option(parser, "--batch", whole(1), "batch sizes (default: 1 8 32 128)", nargs="+", metavar="N")
    add_option(parser, "--dtype", one_of("fp32", "bf16"), "precision", default="fp32")
    add_option(parser, "--device", TEXT, "cpu, cuda or cuda:INDEX", default="cpu")
    parser.add_argument("--compile", action="store_true", help="compile with torch.compile first")
    add_option(parser, "-o --out", PATH, "write the results to this file", metavar="FILE.json")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Measure, print one line per row; the status is 1 if a row was not timed because it is wrong."""
    import torch

    from condconv.lab.bench import report, timing
    from condconv.lab.bench.call import measure_call
    from condconv.lab.bench.run import Row, measure_task, memory_explained
    from condconv.lab.compiler import compiler_explained

    _check(arguments)
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    repetitions = arguments.repetitions or (_QUICK_REPETITIONS if arguments.quick else _REPETITIONS)
    if arguments.runtime is not None:
        return _run_runtime(arguments, repetitions)
    tasks = _tasks(arguments)
    keeps_memory = timing.keep_freed_memory()
    conditions = tasks[0].conditions
    number = 0 if arguments.call else len(tasks)
    print(f"{report.kernels_in_use(conditions)}; threads: {torch.get_num_threads()}; rows: {number}\n")
    try:
        call = measure_call(conditions, repetitions)
    except UsageError as error:  # --impl cannot run here
        raise UsageError(
            f"`--impl` must be one that can run here, got {shown(arguments.impl)} ({first_line(error)}): choose another"
        ) from error
    print(f"call overhead (a layer too small to take time): {call}\n")
    rows: list[Row] = []

    def write() -> None:
        if arguments.out is not None:
            command = command_line(["condconv", *arguments.argv])
            record = report.record(rows, call, command, conditions, repetitions, keeps_memory)
            write_atomic(Path(arguments.out), json.dumps(record, indent=1) + "\n")

    write()
    if arguments.call:
        return 0
    print(report.header(), flush=True)
    for task in tasks:
        try:
            with compiler_explained(), memory_explained():
                rows.append(measure_task(task, repetitions))
        except MissingExtraError as error:
            print(f"{task.case.name}: not measured: {error}", flush=True)
            continue
        print(report.line(rows[-1]), flush=True)
        write()
    print(f"\n{report.summary(rows, call)}")
    return int(any(row.refused is not None for row in rows))


def _run_runtime(arguments: argparse.Namespace, repetitions: int) -> int:
    """Time exported networks, print one line per row, and write them if asked to."""
    from condconv.lab.bench import report, runtimes
    from condconv.lab.bench.run import memory_explained
    from condconv.lab.bench.tasks import BATCHES, networks_of

    print(runtimes.header(), flush=True)
    rows = []
    with memory_explained():
        for case in networks_of(arguments.networks, arguments.experts):
            for row in runtimes.measure_runtime(case, arguments.runtime, arguments.batch or BATCHES, repetitions):
                print(runtimes.line(row), flush=True)
                rows.append(row)
    if arguments.out is not None:
        record = report.runtime_record(rows, command_line(["condconv", *arguments.argv]), repetitions)
        write_atomic(Path(arguments.out), json.dumps(record, indent=1) + "\n")
    return 0


def _tasks(arguments: argparse.Namespace) -> list[Any]:
    from condconv.lab.bench.contender import MODES, Conditions
    from condconv.lab.bench.tasks import full_tasks, quick_tasks

    modes = MODES if arguments.mode is None else (arguments.mode,)
    how = (arguments.dtype, arguments.device, arguments.compile, arguments.impl)
    conditions = [Conditions(mode, *how) for mode in modes]
    if arguments.quick:
        return quick_tasks(conditions[0])
    return full_tasks(conditions, arguments.batch, arguments.layers, arguments.networks, arguments.experts)


def _check(arguments: argparse.Namespace) -> None:
    import torch

    from condconv.nn.experts import resolve_experts
    from condconv.ops.implementations import AUTO, TABLE

    if arguments.experts is not None:
        resolve_experts(arguments.experts)
        if arguments.layers is not None:
            raise UsageError(
                f"`--experts` must be given without --layers, got {shown(arguments.experts)}: the listed layers have "
                "dense experts, leave one of them out"
            )

    if arguments.impl not in (None, AUTO, *TABLE):
        raise UsageError(
            f"`--impl` must be {AUTO} or one of {', '.join(TABLE)}, got {shown(arguments.impl)}: choose another"
        )
    chosen = [
        name for name in ("layers", "networks", "experts", "batch", "mode") if getattr(arguments, name) is not None
    ]
    alone = [name for name in ("quick", "call") if getattr(arguments, name)]
    if alone and (others := [*alone[1:], *chosen]):
        raise UsageError(f"`--{alone[0]}` must be alone in choosing rows, got --{others[0]} too: leave one of them out")
    unused = [name for name in ("quick", "call", "layers", "mode", "impl", "compile") if getattr(arguments, name)]
    unused += [name for name, default in (("dtype", "fp32"), ("device", "cpu")) if getattr(arguments, name) != default]
    if arguments.runtime is not None and unused:
        raise UsageError(
            f"`--runtime` must be given without --{unused[0]}, got both: exported networks are timed in inference as "
            "they are, leave one of them out"
        )
    try:
        device = torch.device(arguments.device)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise UsageError(f"`--device` must be cpu or cuda, got {shown(arguments.device)}: or cuda:1 for the second GPU")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(
            f"`--device` must be available, got {shown(arguments.device)}: torch sees no GPU here, use cpu"
        )
    if arguments.out is not None:
        check_can_write(Path(arguments.out))
