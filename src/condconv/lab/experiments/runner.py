"""All runs of an experiment, several at once, each in a separate process; finished ones are kept."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import IO

import torch
from tqdm import tqdm

from condconv.errors import TrainingInterrupted, UsageError, command_line
from condconv.lab.config import TrainConfig
from condconv.lab.experiments.design import Experiment
from condconv.lab.experiments.runs import Run, RunRecord, check_data
from condconv.lab.rules import whole


@dataclass(frozen=True)
class Outcome:
    """The results of the runs of an experiment.

    Attributes:
        records: Of the finished runs, in the order of the arms and seeds.
        failures: Names of the runs that failed, with the reasons.
    """

    records: tuple[RunRecord, ...]
    failures: dict[str, str]


def list_runs(experiment: Experiment, settings: TrainConfig, out: str | Path, seeds: int) -> list[Run]:
    """Return the runs of an experiment: every arm with the first seed, then with the second, and so on.

    Args:
        experiment: The experiment.
        settings: Settings that all arms share.
        out: Directory of all experiments.
        seeds: Runs of each arm.

    Raises:
        UsageError: There is no seed.
    """
    whole(1, 1000).check("seeds", seeds)
    return [Run(experiment, arm, seed, settings, Path(out)) for seed in range(seeds) for arm in experiment.arms]


def run_all(
    runs: Sequence[Run], command: Callable[[Run], Sequence[str]], *, jobs: int = 1, progress: bool = True
) -> Outcome:
    """Do the runs that are not done yet, and return the records of all of them.

    A run that fails does not stop the others. Concurrent runs share the cores, unless `OMP_NUM_THREADS`
    is set, and each has one of the GPUs.

    Args:
        runs: As `list_runs` returns them.
        command: Returns the command that does one run and writes its record; its stdin is closed when this process
            ends.
        jobs: Processes at the same time; each does one run.
        progress: Whether to show a bar on a terminal, or else a line for each run that ends.

    Raises:
        UsageError: `jobs` is not a count, or the data cannot be used.
        TrainingInterrupted: Ctrl-C or SIGTERM; active runs save and stop; finished ones are kept.
    """
    whole(1, 1024).check("jobs", jobs)
    left = [run for run in runs if run.record() is None]
    if left:
        check_data(left[0])
    failures: dict[str, str] = {}
    pool, processes = ThreadPoolExecutor(jobs), _Processes(_shares(min(jobs, len(left))))
    try:
        waiting = {pool.submit(_do, run, command(run), processes): run for run in left}
        for future in tqdm(as_completed(waiting), "runs", len(left), unit="run", disable=None if progress else True):
            reason, name = future.result(), waiting[future].name
            if reason is not None:
                failures[name] = reason
            if progress and not sys.stderr.isatty():  # a bar is not shown there
                print(f"{name}: {reason or 'finished'}", file=sys.stderr, flush=True)
    except KeyboardInterrupt:
        processes.stop()
        pool.shutdown(cancel_futures=True)  # waits for the runs that are in progress
        done = sum(run.record() is not None for run in runs)
        raise TrainingInterrupted(f"{done} of {len(runs)} runs are finished and kept") from None
    finally:
        pool.shutdown(cancel_futures=True)
    # What is in the place of a failed run's files may be no record, which must not lose those of the others.
    records = [record for run in runs if run.name not in failures and (record := run.record()) is not None]
    return Outcome(tuple(records), failures)


def _shares(jobs: int) -> list[dict[str, str]]:
    """Return the share of the machine that each of several processes may use, as environment variables."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # Several processes that each start one thread per core are many times slower than one after the other.
    threads = {} if "OMP_NUM_THREADS" in os.environ or jobs < 2 else {"OMP_NUM_THREADS": str(max(1, cores // jobs))}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = visible.split(",") if visible else [str(number) for number in range(torch.cuda.device_count())]
    if len(gpus) < 2:
        return [threads] * jobs
    return [{**threads, "CUDA_VISIBLE_DEVICES": gpus[number % len(gpus)]} for number in range(jobs)]


class _Processes:
    """Processes that are all stopped when a Ctrl-C or a signal ends the command that started them.

    Args:
        shares: Environment variables, one dictionary for each process that runs at the same time.
    """

    def __init__(self, shares: list[dict[str, str]]) -> None:
        self._lock = Lock()
        self._shares = shares
        self._running: set[subprocess.Popen[bytes]] = set()
        self._stopped = False

    def call(self, command: Sequence[str], log: IO[str]) -> int:
        """Run a command to its end and return its exit status."""
        with self._lock:
            if self._stopped:
                return -signal.SIGTERM
            # In a separate session a terminal's Ctrl-C does not reach it: it would be interrupted twice.
            share = self._shares[-1]
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,  # the system closes it with this process, even if that is killed
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, **share},
            )
            self._shares.pop()
            self._running.add(process)
        try:
            with process:  # closes the pipe behind it
                return process.wait()
        finally:
            with self._lock:
                self._running.discard(process)
                self._shares.append(share)

    def stop(self) -> None:
        """Let active runs save and stop, and start no more."""
        with self._lock:
            self._stopped = True
            for process in self._running:
                process.terminate()  # not SIGINT, which a job in a shell's background ignores


def _do(run: Run, command: Sequence[str], processes: _Processes) -> str | None:
    """Do a run in a process; return why it failed, or `None`."""
    try:
        run.log.parent.mkdir(parents=True, exist_ok=True)
        with run.log.open("w", encoding="utf-8", errors="backslashreplace") as log:
            print(command_line(command), file=log, flush=True)
            status = processes.call(command, log)
        if status == 0 and run.record() is not None:
            return None
    except (OSError, UsageError) as error:  # no room for the log, or a record that cannot be read: the others continue
        return str(error)
    last = run.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1]
    return f"exit status {status}: {last} (all of it: {run.log})"
