"""Bad input: which argument, the rule, the value, the remedy."""

from __future__ import annotations

import logging
import re

import pytest
import torch

from condconv import ops
from condconv.errors import UsageError
from condconv.ops.native import library

X, W, R, B = torch.zeros(2, 4, 5, 5), torch.zeros(3, 6, 4, 3, 3), torch.zeros(2, 3), torch.zeros(3, 6)
NESTED = torch.nested.as_nested_tensor([X[0], X[1, :, :4]], layout=torch.jagged)


@pytest.mark.parametrize(
    ("message", "arguments", "options"),
    [
        (r"`x` must be a torch.Tensor, got list \[1.0\]: make one", ([1.0], W, R), {}),
        ("`bias` must be a torch.Tensor, got float 1.0: make one", (X, W, R, 1.0), {}),
        ("`x` must have a floating-point dtype .*, got torch.int64: convert it", (X.long(), W, R), {}),
        (
            "`x` must have a floating-point dtype .*, got torch.float8_e5m2: convert",
            (X.to(torch.float8_e5m2), W, R),
            {},
        ),
        ("`weight` must have the dtype of x, torch.float32, got torch.float64: ", (X, W.double(), R), {}),
        ("`bias` must have the dtype of x, torch.float32, got torch.float16: ", (X, W, R, B.half()), {}),
        ("`routing_weights` must be on the device of x, cpu, got meta: move it", (X, W, R.to("meta")), {}),
        (r"`x` must have shape \[B, C, H, W\], got \(4, 5, 5\): add a batch dimension", (X[0], W, R), {}),
        (r"`weight` must have shape \[E, O, C/groups, \*kernel\] with 2 kernel dimensions", (X, W[0], R), {}),
        (r"`weight` must hold at least one expert, .* got shape \(0, 6", (X, W[:0], R[:, :0]), {}),
        (r"`weight` must hold .* channels and taps, got shape \(3, 6, 0", (X, W[:, :, :0], R), {}),
        ("`x` must have 8 channels for weight .* and groups = 2, got 4", (X, W, R), {"groups": 2}),
        (r"`groups` must divide the channels in \(16\) and out \(6\), got 4: ", (X, W, R), {"groups": 4}),
        ("`groups` must be a positive int, got 0: ", (X, W, R), {"groups": 0}),
        ("`groups` must be a positive int, got '2': ", (X, W, R), {"groups": "2"}),
        (r"`routing_weights` must have shape \[B, E\] = \(2, 3\), got \(2, 2\): ", (X, W, R[:, :2]), {}),
        (r"`routing_weights` must have shape \[B, E\] = \(2, 3\), got \(3,\): ", (X, W, R[0]), {}),
        (r"`bias` must have shape \[E, O\] = \(3, 6\), got \(6,\): .*bias.expand", (X, W, R, B[0]), {}),
        ("`stride` must be an int or 2 ints, each at least 1 and below .*, got 0: ", (X, W, R), {"stride": 0}),
        (r"`stride` must be an int or 2 ints, .* got \(1, 2, 3\): ", (X, W, R), {"stride": (1, 2, 3)}),
        (r"`stride` must be an int or 2 ints, .* got 2147483648: ", (X, W, R), {"stride": 2**31}),
        ("`dilation` must be .* got 1.5: ", (X, W, R), {"dilation": 1.5}),
        ("`dilation` must be .* got b'12': ", (X, W, R), {"dilation": b"12"}),
        ("`padding` must be an int or 2 ints, each at least 0 .*, got -1: ", (X, W, R), {"padding": -1}),
        (
            "`padding` must be an int, ints, or one of valid, same, tf_same, got 'full': ",
            (X, W, R),
            {"padding": "full"},
        ),
        (
            '`padding` must not be "same" with a stride, got stride 2: use "tf_same"',
            (X, W, R),
            {"padding": "same", "stride": 2},
        ),
        ("`padding_mode` must be one of zeros, reflect", (X, W, R), {"padding_mode": "mirror"}),
        ("`padding_mode` must be one of zeros, .* got 0: ", (X, W, R), {"padding_mode": 0}),
        ("`impl` must be one of auto, reference, .* got 'fast': ", (X, W, R), {"impl": "fast"}),
        (r"`impl` must be one of auto, .* got \['auto'\]: ", (X, W, R), {"impl": ["auto"]}),
        (
            "`x` must be large enough for an output of at least one pixel, got size .2, 2.* or more padding",
            (X[..., :2, :2], W, R),
            {},
        ),
        (r"`x` must have a pixel in each spatial dimension, got \(2, 4, 0, 5\): ", (X[:, :, :0], W, R), {"padding": 2}),
        (
            r'`padding` must be smaller than the input for padding_mode="reflect", got .*\(5, 5\).* for size \(5, 5\)',
            (X, W, R),
            {"padding": (4, 5), "padding_mode": "reflect"},
        ),
        (
            '`padding` must be at most the size of the input for padding_mode="circular", got .*6',
            (X, W, R),
            {"padding": 6, "padding_mode": "circular"},
        ),
        ("`x` must be a dense tensor, got torch.sparse_coo: call .to_dense", (X.to_sparse(), W, R), {}),
        ("`weight` must be a dense tensor, got torch.sparse_coo: call", (X, W.to_sparse(), R), {}),
        ("`routing_weights` must be a dense tensor, got torch.sparse_coo", (X, W, R.to_sparse()), {}),
        ("`x` must be a dense tensor, got torch._mkldnn: call .to_dense", (X.to_mkldnn(), W, R), {}),
        ("`x` must be a dense tensor, got a nested one: pad it", (NESTED, W, R), {}),
    ],
)
def test_conv2d(message: str, arguments, options) -> None:
    cond_conv2d = ops.cond_conv2d
    for _ in range(2):  # a call that has been made before, and one like it, change nothing
        with pytest.raises(UsageError, match=message):
            cond_conv2d(*arguments, **options)
        cond_conv2d(X, W, R)


@pytest.mark.parametrize(("mode", "most"), [("reflect", 4), ("circular", 5), ("replicate", 9)])
def test_padding_up_to_the_input(mode: str, most: int) -> None:
    padded = torch.nn.functional.pad(X, (most,) * 4, mode=mode)
    y = ops.cond_conv2d(X, W, R, padding=most, padding_mode=mode)
    assert y.shape[2:] == (padded.shape[2] - 2, padded.shape[3] - 2)


def test_transposed_output_padding() -> None:
    with pytest.raises(
        ValueError, match=re.escape("`output_padding` must be smaller than stride or dilation, (2, 2), got (2, 2)")
    ):
        ops.cond_conv_transpose2d(X, torch.zeros(3, 4, 6, 3, 3), R, stride=2, output_padding=2)


def test_transposed_channels() -> None:
    with pytest.raises(ValueError, match="`x` must have 5 channels"):
        ops.cond_conv_transpose2d(X, torch.zeros(3, 5, 6, 3, 3), R)


def test_transposed_output_of_no_pixels() -> None:
    with pytest.raises(ValueError, match="give larger inputs, or less padding"):
        ops.cond_conv_transpose2d(X[..., :1, :1], torch.zeros(3, 4, 6, 3, 3), R, padding=2)


def test_linear() -> None:
    with pytest.raises(
        ValueError, match=re.escape("`weight` must have shape [E, O, C] without a size of 0, got (3, 6)")
    ):
        ops.cond_linear(torch.zeros(2, 6), torch.zeros(3, 6), R)
    with pytest.raises(ValueError, match=re.escape("`x` must have shape [B, ..., C], got (6,)")):
        ops.cond_linear(torch.zeros(6), torch.zeros(3, 2, 6), R)
    with pytest.raises(ValueError, match=re.escape("`x` must have shape [B, ..., C] with C = 6 as weight, got (2, 5)")):
        ops.cond_linear(torch.zeros(2, 5), torch.zeros(3, 2, 6), R)


@pytest.mark.parametrize("impl", ["auto", "reference", "mix_outputs", "grouped", "matmul", "loop"])
@pytest.mark.parametrize("shape", [(2, 0, 6), (2, 5, 0, 6), (0, 0, 6)])
def test_linear_without_rows_is_connected(shape: tuple[int, ...], impl: str) -> None:
    inputs = [torch.randn(shape), torch.randn(3, 4, 6), torch.rand(shape[0], 3), torch.randn(3, 4)]
    leaves = [tensor.requires_grad_() for tensor in inputs]
    y = ops.cond_linear(*leaves, impl=impl)
    assert y.shape == (*shape[:-1], 4)
    grads = torch.autograd.grad(y.sum(), leaves)
    assert all(torch.equal(grad, torch.zeros_like(leaf)) for grad, leaf in zip(grads, leaves, strict=True))


@pytest.mark.parametrize(
    ("message", "changes"),
    [
        ("`weight` must have shape", {"weight": torch.zeros(0, 4, 6)}),
        ("`routing_weights` must have shape", {"routing_weights": torch.zeros(3, 3)}),
        ("`bias` must have shape", {"bias": torch.zeros(4)}),
        ("`bias` must be a torch.Tensor", {"bias": 0}),
        ("`impl` must be one of", {"impl": "none"}),
        ("`weight_scale` must be None", {"weight_scale": torch.ones(3, 4)}),
        ("`weight` must have the dtype of x", {"weight": torch.zeros(3, 4, 6).double()}),
    ],
)
def test_linear_without_rows_is_checked(message: str, changes) -> None:
    good = {"x": torch.zeros(2, 0, 6), "weight": torch.zeros(3, 4, 6), "routing_weights": R, "bias": torch.zeros(3, 4)}
    with pytest.raises(UsageError, match=message):
        ops.cond_linear(**(good | changes))


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
        ((3, 32, 32, 4, 4), (2, 32, 11, 11), {}, "grouped"),  # 2 ** 20 multiply-adds per example
        ((3, 32, 32, 4, 4), (2, 32, 12, 11), {}, "loop"),
        ((3, 6, 4, 5, 5), (2, 4, 5, 5), {}, "mix_outputs"),
        ((1, 6, 4, 3, 3), (2, 4, 5, 5), {}, "mix_outputs"),
        ((3, 4, 1, 3, 3), (2, 4, 30, 30), {"groups": 4}, "grouped"),
    ],
)
def test_rules_of_auto_on_cpu(kernel, x, options, expected: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="condconv"):
        ops.cond_conv2d(torch.zeros(x), torch.zeros(kernel), torch.zeros(2, kernel[0]), **options)
    assert caplog.messages[0].split()[0] == expected


@pytest.mark.usefixtures("without_kernels")
def test_auto_keeps_kernels_of_a_small_batch_only(caplog: pytest.LogCaptureFixture) -> None:
    kernel = torch.zeros(2, 512, 512, 3)
    with caplog.at_level(logging.DEBUG, logger="condconv"):
        for batch in (10, 11):  # 10 kernels are 31.5 MB
            ops.cond_conv_transpose1d(torch.zeros(batch, 512, 1), kernel, torch.zeros(batch, 2))
    taken = [message.split()[0] for message in caplog.messages]
    assert taken == ["grouped", "loop"]


@pytest.mark.usefixtures("without_kernels")
def test_auto_works_off_large_batches_one_by_one(caplog: pytest.LogCaptureFixture) -> None:
    kernel = torch.zeros(2, 2048, 2048, 1, 1)
    with caplog.at_level(logging.DEBUG, logger="condconv"):
        for batch in (2, 3):  # 2 x 2048 x 2048 numbers are 32 MB
            ops.cond_conv2d(torch.zeros(batch, 2048, 2, 1), kernel, torch.zeros(batch, 2))
    assert [message.split()[0] for message in caplog.messages] == ["matmul", "loop"]


@pytest.mark.usefixtures("without_kernels")
def test_auto_looks_at_gradients_for_large_experts(caplog: pytest.LogCaptureFixture) -> None:
    x, kernel = torch.zeros(2, 512, 3, 3), torch.zeros(4, 512, 512, 3, 3)
    with caplog.at_level(logging.DEBUG, logger="condconv"):
        for needs_grad in (False, True):
            ops.cond_conv2d(x, kernel.requires_grad_(needs_grad), torch.zeros(2, 4), padding=1)
    assert [message.split()[0] for message in caplog.messages] == ["loop", "grouped"]


@pytest.mark.usefixtures("without_kernels")
def test_auto_keeps_channels_last_for_depthwise(caplog: pytest.LogCaptureFixture) -> None:
    x = torch.zeros(2, 4, 30, 30).to(memory_format=torch.channels_last)
    with caplog.at_level(logging.DEBUG, logger="condconv"):
        ops.cond_conv2d(x, torch.zeros(3, 4, 1, 3, 3), torch.zeros(2, 3), groups=4)
    assert "loop for x" in caplog.text
