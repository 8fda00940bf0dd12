"""The compiled kernels, on every instruction set of this machine, against the reference."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from condconv.errors import UsageError
from condconv.ops import cond_conv2d, cond_conv_transpose2d
from condconv.ops.native import build, library
from condconv.ops.quantized import quantize, widen
from tests.ops.cases import CASES, Case

pytestmark = pytest.mark.skipif(library.LOADED is None, reason="built without a C compiler")

# Batch, experts, groups, channels and outputs of a group, height, width, kernel, stride, padding, dilation. Sizes stand
# on both sides of what the kernels take at a time: 4 to 16 lanes, panels of 8 to 64 outputs, 6 pixels, 4 examples,
# 256 numbers turned around, 1024 or 2400 mixed, 256 channels of a depthwise chunk; experts are laid out first where
# there are few pixels and a large batch.
SHAPES = {
    "one-of-everything": (1, 1, 1, 1, 1, 1, 1, (1, 1), 1, 0, 1),
    "pointwise-exact": (4, 8, 1, 64, 64, 6, 4, (1, 1), 1, 0, 1),
    "pointwise-tails": (5, 3, 1, 19, 67, 7, 7, (1, 1), 1, 0, 1),
    "pointwise-deep": (9, 4, 1, 1600, 20, 3, 3, (1, 1), 1, 0, 1),
    "pointwise-nearly-deep": (2, 2, 1, 1500, 9, 2, 3, (1, 1), 1, 0, 1),
    "pointwise-laid-out": (9, 3, 1, 3700, 70, 2, 3, (1, 1), 1, 0, 1),
    "pointwise-one-laid-out": (3, 1, 1, 3700, 20, 2, 2, (1, 1), 1, 0, 1),
    "dense-laid-out": (7, 3, 2, 40, 70, 3, 4, (3, 3), 1, 1, 1),
    "dense-laid-out-stride": (5, 2, 1, 7, 270, 5, 4, (3, 3), 2, 1, 1),
    "dense-deep": (6, 5, 1, 130, 70, 5, 6, (3, 3), 1, 1, 1),
    "dense-stride-dilation": (3, 4, 2, 5, 66, 11, 9, (3, 2), 2, 2, 2),
    "dense-eight-taps-square": (2, 3, 1, 3, 5, 9, 9, (8, 8), 1, 3, 1),
    "dense-kernel-outside": (2, 3, 1, 4, 17, 2, 2, (3, 3), 1, 3, 1),
    "grouped": (3, 4, 3, 7, 33, 5, 5, (3, 3), 1, 1, 1),
    "depthwise-exact": (3, 4, 64, 1, 1, 6, 6, (3, 3), 1, 1, 1),
    "depthwise-tails": (3, 4, 83, 1, 1, 7, 5, (3, 3), 1, 1, 1),
    "depthwise-chunks": (2, 3, 531, 1, 1, 4, 3, (5, 5), 2, 2, 1),
    "depthwise-few": (2, 3, 3, 1, 1, 9, 8, (5, 5), 1, 2, 2),
    "depthwise-one-tap": (2, 3, 21, 1, 1, 3, 4, (1, 1), 1, 0, 1),
    "depthwise-two-taps": (2, 3, 37, 1, 1, 3, 4, (1, 2), 1, 0, 1),
    "depthwise-one-pixel": (5, 3, 37, 1, 1, 1, 1, (3, 3), 1, 1, 1),
    "depthwise-multiplier": (2, 3, 6, 1, 4, 5, 5, (3, 3), 1, 1, 1),
}


@pytest.fixture(params=range(3), ids=library.INSTRUCTION_SETS)
def instruction_set(request: pytest.FixtureRequest) -> Iterator[str]:
    """Use one instruction set, if the machine has it."""
    best = library.INSTRUCTION_SETS.index(library.instruction_set())
    loaded = library.LOADED
    if loaded.condconv_force(request.param) != 0:
        pytest.skip("the machine does not have it")
    yield library.INSTRUCTION_SETS[request.param]
    loaded.condconv_force(best)


def tensors(name: str, dtype: torch.dtype = torch.float32) -> tuple[list[Tensor], dict]:
    batch, experts, groups, channels, outputs, height, width, kernel, stride, padding, dilation = SHAPES[name]
    drawn = [
        torch.randn(batch, groups * channels, height, width),
        torch.randn(experts, groups * outputs, channels, *kernel),
        torch.randn(batch, experts),
        torch.randn(experts, groups * outputs),
    ]
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return [tensor.to(dtype) for tensor in drawn], options


def rounded(weight: Tensor, groups: int, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    return (weight.bfloat16(), None) if dtype == torch.bfloat16 else quantize(weight, groups, False)


def check(output: Tensor, arguments: list[Tensor], options: dict) -> None:
    """Compare with the reference in fp64; the budget is what fp32 sums of this many terms may lose."""
    exact = cond_conv2d(*(t.double() for t in arguments), impl="reference", **options)
    size = cond_conv2d(*(t.double().abs() for t in arguments), impl="reference", **options)
    terms = arguments[1][0, 0].numel() + arguments[1].shape[0]
    assert output.shape == exact.shape
    assert ((output - exact).abs() <= torch.finfo(torch.float32).eps * (terms**0.5 + 8) * size).all()


@pytest.mark.parametrize("name", SHAPES)
def test_equals_the_reference(name: str, instruction_set: str) -> None:
    assert library.instruction_set() == instruction_set
    arguments, options = tensors(name)
    check(cond_conv2d(*arguments, impl="native", **options), arguments, options)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["pointwise-tails", "dense-stride-dilation", "grouped", "depthwise-tails"])
def test_narrow_numbers_are_computed_in_fp32_and_rounded_once(name: str, dtype: torch.dtype) -> None:
    arguments, options = tensors(name, dtype)
    arguments[2] = torch.randn(arguments[2].shape)  # routing weights are fp32 all the same
    leaves = [t.requires_grad_() for t in arguments[:3]]
    wide = [t.detach().float().requires_grad_() for t in leaves]
    output, expected = (cond_conv2d(*each, impl="native", **options) for each in (leaves, wide))
    assert torch.equal(output, expected.to(dtype))
    weighting = torch.randn(output.shape).to(dtype)
    grads = torch.autograd.grad(output, leaves, weighting)
    for grad, reference in zip(grads, torch.autograd.grad(expected, wide, weighting.float()), strict=True):
        torch.testing.assert_close(grad, reference.to(grad.dtype), rtol=torch.finfo(grad.dtype).eps, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8], ids=str)
@pytest.mark.parametrize("name", SHAPES)
def test_quantized_experts_equal_those_they_stand_for(name: str, dtype: torch.dtype, instruction_set: str) -> None:
    (x, weight, routing, bias), options = tensors(name)
    experts, scale = rounded(weight, options["groups"], dtype)
    output = cond_conv2d(x, experts, routing, bias, impl="native", weight_scale=scale, **options)
    wide = widen(experts, scale, options["groups"], False, torch.float64)
    check(output, [x, wide, routing, bias], options)


@pytest.mark.parametrize("name", SHAPES)
def test_gradients_equal_the_references(name: str, instruction_set: str) -> None:
    """Of x, experts, routing weights and biases, by the scale of each."""
    arguments, options = tensors(name)
    leaves = [t.requires_grad_() for t in arguments]
    exact = [t.detach().double().requires_grad_() for t in arguments]
    output = cond_conv2d(*leaves, impl="native", **options)
    weighting = torch.randn(output.shape)
    grads = torch.autograd.grad(output, leaves, weighting)
    expected = cond_conv2d(*exact, impl="reference", **options)
    for grad, reference in zip(grads, torch.autograd.grad(expected, exact, weighting.double()), strict=True):
        scale = reference.abs().max().item()
        torch.testing.assert_close(grad.double(), reference, rtol=0, atol=3e-6 * scale)


@pytest.mark.parametrize("needed", [(True, False, False), (False, True, False), (False, False, True)])
def test_only_the_gradients_asked_for(needed: tuple[bool, ...]) -> None:
    (x, weight, routing, _), options = tensors("dense-stride-dilation")
    leaves = [t.requires_grad_(need) for t, need in zip((x, weight, routing), needed, strict=True)]
    cond_conv2d(*leaves, impl="native", **options).square().sum().backward()
    assert tuple(leaf.grad is not None for leaf in leaves) == needed
    exact = [t.detach().double().requires_grad_(need) for t, need in zip(leaves, needed, strict=True)]
    cond_conv2d(*exact, impl="reference", **options).square().sum().backward()
    for leaf, reference in zip(leaves, exact, strict=True):
        if reference.grad is not None:
            torch.testing.assert_close(leaf.grad.double(), reference.grad, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("threads", [2, 5])
@pytest.mark.parametrize("name", ["pointwise-tails", "pointwise-laid-out", "dense-deep", "depthwise-chunks", "grouped"])
def test_the_number_of_threads_does_not_matter(name: str, threads: int) -> None:
    (x, weight, routing, _), options = tensors(name)  # the bias is mixed by torch
    arguments = (x, weight, routing)
    assert library._parallel_for() is not None, "torch's threads are not found: the kernels would run on one"
    before = torch.get_num_threads()
    expected = cond_conv2d(*arguments, impl="native", **options)  # on the one thread of these tests
    torch.set_num_threads(threads)
    try:
        output = cond_conv2d(*arguments, impl="native", **options)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(output, expected)


def test_numbers_after_the_last_expert_are_not_used(instruction_set: str) -> None:
    """A vector may reach into the next channel's numbers; behind the last there are NaNs here."""
    for name in ("depthwise-tails", "depthwise-few", "depthwise-one-tap", "pointwise-tails"):
        arguments, options = tensors(name)
        weight = arguments[1]
        room = torch.full((weight.numel() + 64,), float("nan"))
        arguments[1] = room[: weight.numel()].view_as(weight).copy_(weight)
        check(cond_conv2d(*arguments, impl="native", **options), arguments, options)


@pytest.mark.parametrize("name", ["pointwise-tails", "dense-deep", "depthwise-tails", "grouped"])
def test_layouts_of_inputs_and_experts(name: str, instruction_set: str) -> None:
    arguments, options = tensors(name)
    x, weight, routing, bias = arguments
    inside = weight.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, weight.shape[:2])
    gaps = torch.empty(*weight.shape[:-1], 2 * weight.shape[-1])[..., ::2].copy_(weight)
    wide = torch.empty(*x.shape[:-1], 2 * x.shape[-1])[..., ::2].copy_(x)
    expected = cond_conv2d(*arguments, impl="native", **options)
    for laid_out in (x, x.contiguous(memory_format=torch.channels_last), wide):
        for experts in (weight, inside, gaps):
            output = cond_conv2d(laid_out, experts, routing.T.contiguous().T, bias, impl="native", **options)
            torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-4)
            check(output, arguments, options)
    last = cond_conv2d(
        arguments[0].contiguous(memory_format=torch.channels_last), *arguments[1:], impl="native", **options
    )
    assert last.is_contiguous(memory_format=torch.channels_last)
    for dtype in (torch.bfloat16, torch.int8):
        quantized, scale = rounded(weight, options["groups"], dtype)
        quantized_inside = quantized.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
        one, other = (
            cond_conv2d(x, experts, routing, bias, impl="native", weight_scale=scale, **options)
            for experts in (quantized, quantized_inside)
        )
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", [case for case in CASES if case.op is cond_conv2d], ids=str)
def test_outputs_and_gradients_over_the_shared_table(case: Case) -> None:
    leaves = [t.detach().float().requires_grad_() for t in case.tensors()]
    exact = [t.detach().double().requires_grad_() for t in leaves]
    output = case.op(*leaves, impl="native", **case.options)
    expected = case.op(*exact, impl="reference", **case.options)
    torch.testing.assert_close(output.double(), expected, rtol=1e-5, atol=1e-5)
    weighting = torch.randn(output.shape)
    grads = torch.autograd.grad(output, leaves, weighting)
    for grad, reference in zip(grads, torch.autograd.grad(expected, exact, weighting.double()), strict=True):
        torch.testing.assert_close(grad.double(), reference, rtol=1e-4, atol=1e-4)


def test_values_that_are_not_numbers_stay_where_they_are() -> None:
    arguments, options = tensors("dense-deep")
    arguments[0][1, 3, 2, 2] = float("nan")
    arguments[0][2, 0, 0, 0] = float("inf")
    output = cond_conv2d(*arguments, impl="native", **options)
    expected = cond_conv2d(*arguments, impl="loop", **options)
    assert torch.equal(output.isnan() | output.isinf(), expected.isnan() | expected.isinf())
    assert output[0].isfinite().all()
    assert not output[1].isfinite().all()


# opcheck itself reads .grad of copies it made of the inputs.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_opcheck() -> None:
    (x, weight, routing, bias), _ = tensors("dense-deep")
    leaves = [t.requires_grad_() for t in (x[:2], weight[:, :5].contiguous(), routing[:2].contiguous(), bias[:, :5])]
    geometry = ([1, 1], [1, 1], [1, 1], 1, False, [0, 0])
    torch.library.opcheck(torch.ops.condconv.mixed_conv, (*leaves, *geometry, "native"), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("kernel", "groups", "layout", "taken"),
    [
        ((3, 6, 4, 3, 3), 1, torch.channels_last, "native"),
        ((3, 640, 320, 1, 1), 1, torch.contiguous_format, "native"),
        ((3, 6, 4, 1, 1), 1, torch.contiguous_format, "matmul"),  # turning x around would take longer
        ((3, 640, 1, 3, 3), 640, torch.channels_last, "native"),
        ((3, 640, 1, 3, 3), 640, torch.contiguous_format, "grouped"),
        ((1, 6, 4, 3, 3), 1, torch.channels_last, "mix_outputs"),
    ],
)
def test_auto_takes_it_where_it_can_and_pays(kernel, groups, layout, taken, caplog) -> None:
    x = torch.zeros(2, kernel[2] * groups, 5, 5).to(memory_format=layout)
    with caplog.at_level(logging.DEBUG, logger="condconv"):
        cond_conv2d(x, torch.zeros(kernel), torch.zeros(2, kernel[0]), groups=groups)
    assert f"{taken} for x" in caplog.text


@pytest.mark.parametrize(
    ("kernel", "groups", "taken"),
    [
        ((3, 6, 1, 3, 3), 6, "native"),
        ((3, 6, 4, 3, 3), 1, "native"),
        ((3, 6, 2, 1, 1), 2, "native"),
        ((3, 6, 4, 1, 1), 1, "mix_outputs"),
    ],
    ids=["depthwise", "dense", "pointwise-grouped", "pointwise"],
)
def test_maps_of_one_pixel_need_no_turning_around_and_are_matrices(kernel, groups, taken, caplog) -> None:
    x = torch.zeros(2, kernel[2] * groups, 1, 1)
    with caplog.at_level(logging.DEBUG, logger="condconv"):
        cond_conv2d(x, torch.zeros(kernel), torch.zeros(2, 3), padding=kernel[-1] // 2, groups=groups)
    assert f"{taken} for x" in caplog.text


@pytest.mark.parametrize(
    ("dtype", "kernel", "size", "taken"),
    [
        (torch.bfloat16, (3, 64, 64, 1, 1), 8, "native"),
        (torch.bfloat16, (3, 64, 64, 1, 1), 9, "matmul"),
        (torch.bfloat16, (3, 4, 4, 3, 3), 18, "native"),
        (torch.bfloat16, (3, 4, 4, 3, 3), 19, "grouped"),
        (torch.bfloat16, (3, 64, 1, 3, 3), 30, "native"),
        (torch.float16, (3, 4, 4, 3, 3), 30, "native"),
    ],
)
def test_auto_takes_it_for_narrow_numbers_where_it_pays(dtype, kernel, size, taken, caplog) -> None:
    groups = 64 // kernel[2] if kernel[1] == 64 else 1
    x = torch.zeros(2, kernel[2] * groups, size, size).to(dtype, memory_format=torch.channels_last)
    with caplog.at_level(logging.DEBUG, logger="condconv"):
        cond_conv2d(x, torch.zeros(kernel, dtype=dtype), torch.zeros(2, kernel[0]), groups=groups)
    assert f"{taken} for x" in caplog.text


def test_what_it_cannot_do_is_said() -> None:
    x, weight, routing = torch.randn(2, 4, 5, 5), torch.randn(3, 6, 4, 3, 3), torch.rand(2, 3)
    message = "got 'native': its kernels compute in fp32 for fp32, bf16 and fp16, x or weight is float64; take 'auto'"
    with pytest.raises(UsageError, match=message):
        cond_conv2d(x.double(), weight.double(), routing, impl="native")
    with pytest.raises(UsageError, match="two-dimensional convolutions only, not transposed ones"):
        cond_conv_transpose2d(x, torch.randn(3, 4, 6, 3, 3), routing, impl="native")
    with pytest.raises(UsageError, match="at most 64 taps, got 72"):
        cond_conv2d(torch.randn(2, 4, 9, 9), torch.randn(3, 6, 4, 8, 9), routing, impl="native")
    with pytest.raises(UsageError, match="need plain torch functions"):
        torch.func.vmap(lambda xi: cond_conv2d(xi[None], weight, routing[:1], impl="native"))(x)


def test_without_the_library_all_goes_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "broken.so").write_bytes(b"no library")
    with monkeypatch.context() as patch:
        patch.setattr(build, "digest_of_sources", lambda: "0")
        build.compile_library(tmp_path / "older.so", ("-O0",))  # it is never called
    for path, message in (
        (tmp_path / "missing.so", "were not compiled when"),
        (tmp_path / "broken.so", "cannot be loaded"),
        (tmp_path / "older.so", "were compiled from other sources"),
    ):
        loaded, reason = library.open_library(path)
        monkeypatch.setattr(library, "LOADED", loaded)
        monkeypatch.setattr(library, "WHY_NOT", reason)
        arguments, options = tensors("pointwise-tails")
        check(cond_conv2d(*arguments, **options), arguments, options)
        assert library.instruction_set() == "none"
        with pytest.raises(UsageError, match=f"`impl` must be able to .*, got 'native': its kernels {message}"):
            cond_conv2d(*arguments, impl="native", **options)


def test_a_missing_compiler_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(build.CompileError, match="no C compiler found"):
        build.compile_library(tmp_path / "out.so")


@pytest.mark.slow
def test_sanitizers_find_nothing(tmp_path: Path) -> None:
    """Address and undefined-behaviour sanitizers over this file's other tests, in a process of its own."""
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "scripts/sanitize.py"], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
