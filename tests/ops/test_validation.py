"""Bad input: which argument, the rule, the value, the remedy."""

from __future__ import annotations

import logging
import re

import pytest
import torch

from condconv import ops
from condconv.ops.native import library

X, W, R, B = torch.zeros(2, 4, 5, 5), torch.zeros(3, 6, 4, 3, 3), torch.zeros(2, 3), torch.zeros(3, 6)


@pytest.mark.parametrize(
    ("error", "message", "arguments", "options"),
    [
        (TypeError, "x must be a torch.Tensor, got list", ([1.0], W, R), {}),
        (TypeError, "bias must be a torch.Tensor, got float", (X, W, R, 1.0), {}),
        (TypeError, "x must have a floating-point dtype, got torch.int64", (X.long(), W, R), {}),
        (TypeError, "weight must have the dtype of x, torch.float32, got torch.float64", (X, W.double(), R), {}),
        (TypeError, "bias must have the dtype of x, torch.float32, got torch.float16", (X, W, R, B.half()), {}),
        (ValueError, "routing_weights must be on the device of x, cpu, got meta", (X, W, R.to("meta")), {}),
        (ValueError, r"x must have shape \[B, C, H, W\], got \(4, 5, 5\); add a batch dimension", (X[0], W, R), {}),
        (ValueError, r"weight must have shape \[E, O, C/groups, \*kernel\] with 2", (X, W[0], R), {}),
        (ValueError, "weight must hold at least one expert", (X, W[:0], R[:, :0]), {}),
        (ValueError, "x must have 8 channels for weight .* with 2 groups, got 4", (X, W, R), {"groups": 2}),
        (
            ValueError,
            "groups must be a positive divisor of the channels in .16. and out .6., got 4",
            (X, W, R),
            {"groups": 4},
        ),
        (ValueError, "groups must be a positive divisor .* got 0", (X, W, R), {"groups": 0}),
        (ValueError, r"routing_weights must have shape \[B, E\] = \(2, 3\), got \(2, 2\)", (X, W, R[:, :2]), {}),
        (ValueError, r"routing_weights must have shape \[B, E\] = \(2, 3\), got \(3,\)", (X, W, R[0]), {}),
        (ValueError, r"bias must have shape \[E, O\] = \(3, 6\), got \(6,\); .*bias.expand", (X, W, R, B[0]), {}),
        (ValueError, "stride must be an int or 2 ints, each at least 1, got 0", (X, W, R), {"stride": 0}),
        (
            ValueError,
            r"stride must be an int or 2 ints, each at least 1, got \(1, 2, 3\)",
            (X, W, R),
            {"stride": (1, 2, 3)},
        ),
        (ValueError, "dilation must be .* got 1.5", (X, W, R), {"dilation": 1.5}),
        (ValueError, "padding must be an int or 2 ints, each at least 0, got -1", (X, W, R), {"padding": -1}),
        (
            ValueError,
            "padding must be an int, ints, or one of valid, same, tf_same, got 'full'",
            (X, W, R),
            {"padding": "full"},
        ),
        (
            ValueError,
            'padding must not be "same" with stride .2, 2.: .* use "tf_same"',
            (X, W, R),
            {"padding": "same", "stride": 2},
        ),
        (ValueError, "padding_mode must be one of zeros, reflect", (X, W, R), {"padding_mode": "mirror"}),
        (ValueError, "impl must be 'auto' or one of reference, .* got 'fast'", (X, W, R), {"impl": "fast"}),
        (
            ValueError,
            "x must be large enough for an output of at least one pixel, got size .2, 2.* or more padding",
            (X[..., :2, :2], W, R),
            {},
        ),
    ],
)
def test_conv2d(error: type[Exception], message: str, arguments, options) -> None:
    with pytest.raises(error, match=message):
        ops.cond_conv2d(*arguments, **options)


def test_transposed_output_padding() -> None:
    with pytest.raises(
        ValueError, match=re.escape("output_padding must be smaller than stride or dilation, (2, 2), got (2, 2)")
    ):
        ops.cond_conv_transpose2d(X, torch.zeros(3, 4, 6, 3, 3), R, stride=2, output_padding=2)


def test_transposed_channels() -> None:
    with pytest.raises(ValueError, match="x must have 5 channels"):
        ops.cond_conv_transpose2d(X, torch.zeros(3, 5, 6, 3, 3), R)


def test_transposed_output_of_no_pixels() -> None:
    with pytest.raises(ValueError, match="give larger inputs, or less padding"):
        ops.cond_conv_transpose2d(X[..., :1, :1], torch.zeros(3, 4, 6, 3, 3), R, padding=2)


def test_linear() -> None:
    with pytest.raises(ValueError, match=re.escape("weight must have shape [E, O, C], got (3, 6)")):
        ops.cond_linear(torch.zeros(2, 6), torch.zeros(3, 6), R)
    with pytest.raises(ValueError, match=re.escape("x must have shape [B, ..., C], got (6,)")):
        ops.cond_linear(torch.zeros(6), torch.zeros(3, 2, 6), R)
    with pytest.raises(ValueError, match=re.escape("x must have shape [B, ..., C] with C = 6 as weight, got (2, 5)")):
        ops.cond_linear(torch.zeros(2, 5), torch.zeros(3, 2, 6), R)
    assert ops.cond_linear(torch.zeros(2, 0, 6), torch.zeros(3, 4, 6), R).shape == (2, 0, 4)


@pytest.fixture
def without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine without a C compiler, where auto chooses among torch's own operations."""
    monkeypatch.setattr(library, "WHY_NOT", "left out by this test")


@pytest.mark.usefixtures("without_kernels")
def test_auto_logs_its_choice(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="condconv"):
        ops.cond_conv2d(X, torch.zeros(3, 6, 4, 1, 1), R)
    assert "matmul for x (2, 4, 5, 5), experts (3, 6, 4, 1, 1)" in caplog.text


@pytest.mark.usefixtures("without_kernels")
@pytest.mark.parametrize(
    ("kernel", "x", "options", "expected"),
    [
        ((3, 6, 4, 1, 1), (2, 4, 5, 5), {}, "matmul"),
        ((3, 32, 32, 4, 4), (2, 32, 11, 11), {}, "grouped"),  # 2 ** 20 multiply-adds an example
        ((3, 32, 32, 4, 4), (2, 32, 12, 11), {}, "per_example"),
        ((3, 6, 4, 5, 5), (2, 4, 5, 5), {}, "mix_outputs"),
        ((1, 6, 4, 3, 3), (2, 4, 5, 5), {}, "mix_outputs"),
        ((3, 4, 1, 3, 3), (2, 4, 30, 30), {"groups": 4}, "grouped"),
    ],
)
def test_rules_of_auto_on_cpu(kernel, x, options, expected: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="condconv"):
        ops.cond_conv2d(torch.zeros(x), torch.zeros(kernel), torch.zeros(2, kernel[0]), **options)
    assert caplog.text.split("api.py")[1].split()[1] == expected


@pytest.mark.usefixtures("without_kernels")
def test_auto_keeps_kernels_of_a_small_batch_only(caplog: pytest.LogCaptureFixture) -> None:
    kernel = torch.zeros(2, 512, 512, 3)
    with caplog.at_level(logging.DEBUG, logger="condconv"):
        for batch in (10, 11):  # 10 kernels are 31.5 MB
            ops.cond_conv_transpose1d(torch.zeros(batch, 512, 1), kernel, torch.zeros(batch, 2))
    taken = [line.split("api.py")[1].split()[1] for line in caplog.text.splitlines()]
    assert taken == ["grouped", "per_example"]


@pytest.mark.usefixtures("without_kernels")
def test_auto_works_off_large_batches_one_by_one(caplog: pytest.LogCaptureFixture) -> None:
    kernel = torch.zeros(2, 2048, 2048, 1, 1)
    with caplog.at_level(logging.DEBUG, logger="condconv"):
        for batch in (2, 3):  # 2 x 2048 x 2048 numbers are 32 MB
            ops.cond_conv2d(torch.zeros(batch, 2048, 2, 1), kernel, torch.zeros(batch, 2))
    assert [line.split("api.py")[1].split()[1] for line in caplog.text.splitlines()] == ["matmul", "per_example"]


@pytest.mark.usefixtures("without_kernels")
def test_auto_looks_at_gradients_for_large_experts(caplog: pytest.LogCaptureFixture) -> None:
    x, kernel = torch.zeros(2, 512, 3, 3), torch.zeros(4, 512, 512, 3, 3)
    with caplog.at_level(logging.DEBUG, logger="condconv"):
        for needs_grad in (False, True):
            ops.cond_conv2d(x, kernel.requires_grad_(needs_grad), torch.zeros(2, 4), padding=1)
    assert [line.split("api.py")[1].split()[1] for line in caplog.text.splitlines()] == ["per_example", "grouped"]


@pytest.mark.usefixtures("without_kernels")
def test_auto_keeps_channels_last_for_depthwise(caplog: pytest.LogCaptureFixture) -> None:
    x = torch.zeros(2, 4, 30, 30).to(memory_format=torch.channels_last)
    with caplog.at_level(logging.DEBUG, logger="condconv"):
        ops.cond_conv2d(x, torch.zeros(3, 4, 1, 3, 3), torch.zeros(2, 3), groups=4)
    assert "per_example for x" in caplog.text
