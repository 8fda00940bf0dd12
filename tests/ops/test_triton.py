"""The Triton kernels: which calls they take, and a run of triton_interpreted.py in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from condconv.errors import UsageError
from condconv.ops import cond_conv2d
from condconv.ops.geometry import Geometry
from condconv.ops.implementations import GROUPED, MATMUL, TRITON
from condconv.ops.problem import Problem, describe
from condconv.ops.rules import choose, resolve
from condconv.ops.triton import limits

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def with_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Linux with CUDA, wherever the test runs."""
    monkeypatch.setattr(limits, "INSTALLED", True)
    monkeypatch.setattr(limits, "INTERPRETED", False)


def problem(x: tuple[int, ...] = (2, 4, 5, 5), weight: tuple[int, ...] = (3, 6, 4, 3, 3), **changes: Any) -> Problem:
    """Return a call for a GPU that nobody needs to have, with some of its facts changed."""
    tensors = torch.empty(x, device="meta"), torch.empty(weight, device="meta"), torch.empty(x[0], 3, device="meta")
    geometry = Geometry((1, 1), (1, 1), (1, 1), 1)
    pixels = torch.Size(geometry.output_size(x[2:], weight[3:])).numel()
    return describe(*tensors, None, geometry, pixels)._replace(**{"device": "cuda", **changes})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_it_takes(dtype: torch.dtype) -> None:
    assert TRITON.why_not(problem(dtypes=(dtype, torch.float32))) is None
    assert resolve("triton", problem()) is TRITON


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"device": "cpu"}, "its kernels are for CUDA GPUs, x is on cpu"),
        ({"dtypes": (torch.float32, torch.float64)}, "compute in fp32, bf16 and fp16, x or weight is float64"),
        ({"transposed": True}, "two-dimensional convolutions only, not transposed ones"),
        ({"spatial": 1}, "two-dimensional convolutions only"),
        ({"weight": (3, 6, 4, 8, 9), "x": (2, 4, 9, 9)}, "at most 64 taps, got 72"),
        ({"weight": (33, 6, 4, 1, 1)}, "mixes at most 32 experts, got 33"),
        ({"exporting": True}, "need plain torch functions"),
        ({"transforming": True}, "need plain torch functions"),
    ],
)
def test_what_it_cannot_do_is_said(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(UsageError, match=f"`impl` must be able to run this call, got 'triton': .*{reason}"):
        resolve("triton", problem(**changes))


def test_offsets_inside_an_example_or_an_expert_fit_32_bits() -> None:
    """Those of an example in the batch, and of an expert among all, are 64-bit: their number does not matter."""
    side = 2**15
    assert TRITON.why_not(problem((4, 1, side, side), (3, 1, 1, 1, 1), output_numel=1)) is None
    for x, weight in (
        ((1, 1, side, side + 1), (3, 1, 1, 3, 3)),
        ((1, 1, side // 2, side), (3, 3, 1, 3, 3)),  # the output
        ((1, side + 1, 3, 3), (3, side, side + 1, 1, 1)),
    ):
        assert "an expert has at most 1073741824 numbers" in TRITON.why_not(problem(x, weight))


def test_without_triton_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "INSTALLED", False)
    assert "triton is not installed" in TRITON.why_not(problem())


def test_the_interpreter_computes_on_the_cpu_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "INTERPRETED", True)
    assert TRITON.why_not(problem(device="cpu")) is None
    assert TRITON.why_not(problem()) == "Triton's interpreter computes on the CPU, x is on cuda"


def test_a_call_on_the_cpu_is_refused() -> None:
    with pytest.raises(UsageError, match="got 'triton': its kernels are for CUDA GPUs, x is on cpu; take 'auto' or"):
        cond_conv2d(torch.zeros(2, 4, 5, 5), torch.zeros(3, 6, 4, 3, 3), torch.zeros(2, 3), impl="triton")


def test_auto_does_not_take_it_before_it_is_measured() -> None:
    assert choose(problem()).takes is GROUPED
    assert choose(problem(weight=(3, 6, 4, 1, 1))).takes is MATMUL


def test_no_kernel_is_defined_before_it_runs() -> None:
    """The modules that define kernels import triton, which need not be there."""
    code = "import sys, condconv.ops.api; sys.exit('condconv.ops.triton.loading' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.mark.skipif(not limits.INSTALLED, reason="triton is not installed")
@pytest.mark.parametrize("which", ["not slow", pytest.param("slow", marks=pytest.mark.slow)])
def test_kernels_under_the_interpreter(which: str) -> None:
    """Triton must find the variable when it is imported, and here it may have been."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", which),
            "tests/ops/triton_interpreted.py",
        ],
        cwd=ROOT,
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]


@pytest.mark.slow
@pytest.mark.skipif(not limits.INSTALLED, reason="triton is not installed")
@pytest.mark.parametrize("capability", [80, 90])
def test_kernels_compile_for_gpus(capability: int, tmp_path: Path) -> None:
    """With the assembler that comes with triton; a consumer GPU has 99 KB of shared memory a program."""
    done = subprocess.run(
        [sys.executable, "tests/ops/triton_compiled.py", str(capability)],
        cwd=ROOT,
        env=os.environ | {"TRITON_CACHE_DIR": str(tmp_path), "TRITON_INTERPRET": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    kernels = [line.split() for line in done.stdout.splitlines()]
    assert {name.rsplit(".", 1)[0] for name, _ in kernels} == {
        f"condconv.ops.triton.{name}" for name in ("dense", "dense_gradient", "depthwise", "depthwise_gradient")
    }
    assert max(int(shared) for _, shared in kernels) <= 99 * 1024
