"""The Triton kernels on a GPU: the table of the interpreter, sizes that fill the tiles, and what only a GPU shows."""

from __future__ import annotations

import pytest
import torch

from condconv.ops.triton import limits
from tests.ops.triton_checks import LAYOUTS, SHAPES, check, draw, run

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available() or limits.INTERPRETED, reason="no CUDA device"),
    # Triton warns of its own defaults when it compiles.
    pytest.mark.filterwarnings("ignore::UserWarning:triton"),
]
# As `SHAPES`. Those with more than 128 pixels mix before; the others mix in the kernel, for 1 or 4 examples.
LARGE = {
    "pointwise-mixed-inside": (9, 8, 1, 1152, 192, 7, 7, (1, 1), 1, 0, 1),
    "pointwise-mixed-before": (9, 8, 1, 64, 256, 56, 56, (1, 1), 1, 0, 1),
    "pointwise-one-example": (1, 8, 1, 672, 112, 14, 14, (1, 1), 1, 0, 1),
    "pointwise-stride": (5, 4, 1, 130, 67, 28, 28, (1, 1), 2, 0, 1),
    "pointwise-32-experts": (5, 32, 1, 96, 80, 7, 7, (1, 1), 1, 0, 1),
    "dense-mixed-inside": (6, 8, 1, 128, 136, 7, 7, (3, 3), 1, 1, 1),
    "dense-mixed-before": (3, 8, 1, 64, 64, 28, 28, (3, 3), 1, 1, 1),
    "dense-stride": (5, 4, 1, 67, 130, 28, 27, (3, 3), 2, 1, 1),
    "dense-grouped": (3, 4, 4, 24, 40, 14, 14, (3, 3), 1, 1, 1),
    "dense-many-taps": (2, 4, 1, 16, 16, 17, 17, (8, 8), 1, 3, 1),
    "depthwise-mixed-inside": (9, 8, 1152, 1, 1, 7, 7, (3, 3), 1, 1, 1),
    "depthwise-mixed-before": (9, 8, 672, 1, 1, 14, 14, (5, 5), 1, 2, 1),
    "depthwise-stride": (5, 4, 144, 1, 1, 56, 56, (3, 3), 2, 1, 1),
    "depthwise-many-taps": (3, 32, 40, 1, 1, 14, 14, (8, 8), 1, 3, 1),
}


@pytest.fixture(autouse=True)
def exact_products() -> None:
    """Keep fp32 from being rounded to TF32, whatever the default of this torch is."""
    torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", limits.DTYPES, ids=str)
@pytest.mark.parametrize("name", [*SHAPES, *LARGE])
def test_output_and_gradients_equal_the_references(
    name: str, dtype: torch.dtype, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.ops.triton_checks.SHAPES", SHAPES | LARGE)
    (x, *rest), options = draw(name, dtype, "cuda")
    check([x.contiguous(memory_format=LAYOUTS[layout]), *rest], options, dtype)


@pytest.mark.parametrize("name", ["dense-mixed-inside", "depthwise-mixed-before"])
def test_the_same_at_every_call(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.ops.triton_checks.SHAPES", LARGE)
    tensors, options = draw(name, torch.bfloat16, "cuda")
    *first, grad_output = run(tensors, None, "triton", options)
    *second, _ = run(tensors, grad_output, "triton", options)
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_more_numbers_in_a_batch_than_32_bits_count() -> None:
    """5 examples of 2**29 numbers, bf16: the last begins behind 2**31; x, y and the gradient of x are 5 GB each."""
    x = torch.zeros(5, 8, 2**13, 2**13, dtype=torch.bfloat16, device="cuda")
    x[4, :, -1, -1] = 1
    weight = torch.ones(2, 8, 8, 1, 1, dtype=torch.bfloat16, device="cuda")
    routing = torch.full((5, 2), 0.5, device="cuda")
    y, grad_x, grad_weight, *_ = run([x, weight, routing], torch.ones_like(x), "triton", {})
    assert y[4, :, -1, -1].tolist() == [8.0] * 8
    assert y.count_nonzero() == 8
    assert grad_x[4, :, -1, -1].tolist() == [8.0] * 8
    assert grad_weight.flatten().tolist() == [0.5] * 128


@pytest.mark.parametrize("name", ["pointwise-tails", "dense", "depthwise"])
def test_inside_a_compiled_graph(name: str) -> None:
    tensors, options = draw(name, torch.bfloat16, "cuda")
    expected = run(tensors, None, "triton", options)
    from condconv.ops import cond_conv2d

    compiled = torch.compile(lambda *t: cond_conv2d(*t, impl="triton", **options), fullgraph=True)
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    output = compiled(*leaves)
    grads = torch.autograd.grad(output, leaves, expected[-1])
    for result, eager in zip((output, *grads), expected[:-1], strict=True):
        torch.testing.assert_close(result, eager)
