"""Quantized experts: against the reference with the experts they stand for, on whatever computes them."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from condconv import ops
from condconv.errors import UsageError
from condconv.ops import cond_conv2d
from condconv.ops.native import library
from condconv.ops.quantized import LARGEST, along_outputs, quantize, widen
from tests.ops.cases import CASES, Case

NATIVE = pytest.mark.skipif(library.LOADED is None, reason="built without a C compiler")
DTYPES = (torch.int8, torch.bfloat16)


def rounded(weight: Tensor, dtype: torch.dtype, case: Case) -> tuple[Tensor, Tensor | None, Tensor]:
    """Return quantized experts, their scale, and what they stand for in fp64."""
    layout = (case.options.get("groups", 1), "transpose" in case.op.__name__)
    if dtype == torch.bfloat16:
        return weight.bfloat16(), None, weight.bfloat16().double()
    experts, scale = quantize(weight, *layout)
    return experts, scale, widen(experts, scale, *layout, torch.float64)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_equals_the_reference_with_the_experts_they_stand_for(case: Case, dtype: torch.dtype) -> None:
    x, weight, routing, bias = (t.detach().float() for t in case.tensors())
    experts, scale, exact = rounded(weight, dtype, case)
    output = case.op(x, experts, routing, bias, weight_scale=scale, **case.options)
    expected = case.op(x.double(), exact, routing.double(), bias.double(), impl="reference", **case.options)
    assert output.dtype == torch.float32
    torch.testing.assert_close(output.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("impl", ["reference", "mix_outputs", "grouped", "matmul", "loop"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_implementation_takes_them(dtype: torch.dtype, impl: str) -> None:
    case = next(case for case in CASES if case.name == "dense-uneven")
    x, weight, routing, bias = (t.detach().float() for t in case.tensors())
    experts, scale, exact = rounded(weight, dtype, case)
    output = cond_conv2d(x, experts, routing, bias, impl=impl, weight_scale=scale, **case.options)
    expected = cond_conv2d(x.double(), exact, routing.double(), bias.double(), impl="reference", **case.options)
    torch.testing.assert_close(output.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("x_dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_of_x(x_dtype: torch.dtype) -> None:
    x, weight, routing = torch.randn(2, 4, 6, 6), torch.randn(3, 5, 4, 3, 3), torch.rand(2, 3)
    experts, scale = quantize(weight, 1, False)
    exact = widen(experts, scale, 1, False, torch.float64)
    output = cond_conv2d(x.to(x_dtype), experts, routing.to(x_dtype), weight_scale=scale)
    expected = cond_conv2d(x.to(x_dtype).double(), exact, routing.to(x_dtype).double(), impl="reference")
    assert output.dtype == x_dtype
    # The mixed kernel is rounded to the dtype of x, and so is the output, whose sums have 36 terms of about 1.
    eps = torch.finfo(x_dtype).eps
    torch.testing.assert_close(output.double(), expected, rtol=0, atol=2 * eps * expected.abs().max().item() + 4 * eps)


def test_under_autocast() -> None:
    x, weight, routing = torch.randn(2, 4, 6, 6), torch.randn(3, 5, 4, 3, 3), torch.rand(2, 3)
    experts, scale = quantize(weight, 1, False)
    with torch.autocast("cpu", torch.bfloat16):
        output = cond_conv2d(x, experts, routing, weight_scale=scale)
    assert output.dtype == torch.bfloat16
    exact = widen(experts, scale, 1, False, torch.float64)
    expected = cond_conv2d(x.bfloat16().double(), exact, routing.double(), impl="reference")
    eps = torch.finfo(torch.bfloat16).eps  # as above: the mixed kernel may be rounded, and the output is
    torch.testing.assert_close(output.double(), expected, rtol=0, atol=2 * eps * expected.abs().max().item() + 4 * eps)


def test_int8_by_hand() -> None:
    """Two experts of two output channels: 254 / 127 = 2, so 3 is 1.5 steps and goes to the even 2; and so on."""
    weight = torch.tensor([[[254.0, 3.0], [-12.7, 0.26]], [[0.0, 0.0], [1.27, -1.27]]])
    experts, scale = quantize(weight, 1, False)
    torch.testing.assert_close(scale[:, 1], torch.tensor([0.1, 0.01]))
    assert scale[0, 0] == 2
    assert experts.tolist() == [[[127, 2], [-127, 3]], [[0, 0], [127, -127]]]
    wide = widen(experts, scale, 1, False, torch.float64)
    torch.testing.assert_close(wide[0], torch.tensor([[254.0, 4.0], [-12.7, 0.3]], dtype=torch.float64))


@pytest.mark.parametrize("spread", [1e-42, 1e-30, 1.0, 1e30])
@pytest.mark.parametrize(("shape", "groups", "transposed"), [((3, 4, 5, 2, 2), 2, False), ((3, 4, 5, 2, 2), 2, True)])
def test_no_number_is_off_by_more_than_half_its_scale(
    shape: tuple[int, ...], groups: int, transposed: bool, spread: float
) -> None:
    weight = torch.randn(shape) * spread
    experts, scale = quantize(weight, groups, transposed)
    assert scale.shape == (3, 10 if transposed else 4)
    error = (weight.double() - widen(experts, scale, groups, transposed, torch.float64)).abs()
    bound = along_outputs(scale, weight, groups, transposed).double() / 2
    assert (error <= bound * (1 + 1e-6)).all()
    assert (experts != -128).all()
    if spread > 1e-38:  # below, numbers have few digits and the scale is the least normal one
        outputs = experts.unflatten(1, (groups, -1)).transpose(2, 3).flatten(1, 2) if transposed else experts
        assert (outputs.flatten(2).abs().amax(2) == LARGEST).all()


def test_a_scale_belongs_to_the_output_channel_of_its_group() -> None:
    """Of a transposed convolution too, where the stack has the groups along the input channels."""
    weight = torch.ones(1, 4, 3, 1)
    scale = torch.arange(6.0)[None]  # O = 2 groups x 3
    spread = along_outputs(scale, weight, 2, True)[..., 0]
    assert spread.expand(1, 4, 3)[0].tolist() == [[0, 1, 2], [0, 1, 2], [3, 4, 5], [3, 4, 5]]


@NATIVE
def test_auto_reads_them_as_they_are_where_it_can(caplog: pytest.LogCaptureFixture) -> None:
    routing, experts = torch.rand(2, 3), torch.randn(3, 5, 4, 3, 3).bfloat16()
    with caplog.at_level(logging.DEBUG, "condconv"):
        cond_conv2d(torch.randn(2, 4, 6, 6), experts, routing)
        cond_conv2d(torch.randn(2, 4, 3, 3), experts, routing)  # one pixel
        ops.cond_linear(torch.randn(2, 4), experts[..., 0, 0], routing)
        ops.cond_conv1d(torch.randn(2, 4, 6), experts[..., 0], routing)
    chosen = [record.getMessage() for record in caplog.records]
    assert [text.partition(" ")[0] for text in chosen] == ["native", "native", "native", "grouped"]
    assert [text.endswith("torch.bfloat16 and widened first") for text in chosen] == [False, False, False, True]


def test_a_gradient_is_refused() -> None:
    x, experts, routing, bias = torch.randn(1, 4, 5, 5), torch.randn(2, 3, 4, 1, 1).bfloat16(), torch.rand(1, 2), None
    quantized, scale = quantize(torch.randn(2, 3, 4, 1, 1), 1, False)
    message = (
        r"`weight` must hold ordinary experts if gradients are needed, got quantized ones \(torch.{}\): call under "
    )
    for needs in (0, 2):
        arguments = [x, experts, routing, bias]
        arguments[needs] = arguments[needs].clone().requires_grad_()
        with pytest.raises(UsageError, match=message.format("bfloat16")):
            cond_conv2d(*arguments)
        with torch.no_grad():
            cond_conv2d(*arguments)
    with pytest.raises(UsageError, match=message.format("int8")):
        cond_conv2d(x, quantized, routing, weight_scale=scale.requires_grad_())
    with pytest.raises(UsageError, match=message.format("bfloat16")):
        cond_conv2d(x, experts, routing, torch.rand(2, 3, requires_grad=True))


def test_bfloat16_experts_train_under_autocast_and_beside_bfloat16() -> None:
    experts = torch.randn(2, 3, 4, 1, 1).bfloat16().requires_grad_()
    x, routing = torch.randn(1, 4, 5, 5), torch.rand(1, 2)
    with torch.autocast("cpu", torch.bfloat16):
        cond_conv2d(x, experts, routing).sum().backward()
    cond_conv2d(x.bfloat16(), experts, routing).sum().backward()
    assert experts.grad is not None


@pytest.mark.parametrize(
    ("error", "message", "dtype", "scale"),
    [
        (UsageError, "`weight_scale` must be given for int8 experts, got None", torch.int8, None),
        (UsageError, "`weight_scale` must be None for torch.bfloat16 experts, got a tensor", torch.bfloat16, (2, 3)),
        (UsageError, "`weight_scale` must be None for torch.float32 experts, got a tensor", torch.float32, (2, 3)),
        (UsageError, r"float32 \[E, O\] = \(2, 3\), got torch.float32 \(2, 4\): take what", torch.int8, (2, 4)),
        (UsageError, "`weight` must have a floating-point dtype .*, got torch.uint8", torch.uint8, (2, 3)),
    ],
)
def test_what_does_not_fit_is_said(error: type, message: str, dtype: torch.dtype, scale: tuple | None) -> None:
    experts = torch.ones(2, 3, 4, 1, 1).to(dtype)
    with pytest.raises(error, match=message):
        cond_conv2d(
            torch.randn(1, 4, 5, 5),
            experts,
            torch.rand(1, 2),
            weight_scale=None if scale is None else torch.ones(scale),
        )


def test_a_scale_of_another_dtype_is_refused() -> None:
    scale = torch.ones(2, 3, dtype=torch.float16)
    with pytest.raises(UsageError, match="`weight_scale` must be torch.float32"):
        cond_conv2d(
            torch.randn(1, 4, 5, 5), torch.ones(2, 3, 4, 1, 1).to(torch.int8), torch.rand(1, 2), weight_scale=scale
        )


class Layer(torch.nn.Module):
    def __init__(self, impl: str = "auto") -> None:
        super().__init__()
        experts, scale = quantize(torch.randn(5, 6, 4, 3, 3), 1, False)
        self.impl = impl
        self.register_buffer("experts", experts)
        self.register_buffer("scale", scale)

    def forward(self, x: Tensor, routing: Tensor) -> Tensor:
        return cond_conv2d(x, self.experts, routing, impl=self.impl, weight_scale=self.scale, padding=1)


@pytest.mark.parametrize("impl", ["auto", pytest.param("native", marks=NATIVE)])
def test_compiled_in_one_graph(impl: str) -> None:
    torch._dynamo.reset()
    layer = Layer(impl)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True, dynamic=True)
    for batch in (7, 13):
        x, routing = torch.randn(batch, 4, 9, 8), torch.rand(batch, 5)
        torch.testing.assert_close(compiled(x, routing), layer(x, routing), rtol=1e-5, atol=1e-4)


def test_exported_with_a_free_batch() -> None:
    layer, batch = Layer(), torch.export.Dim("batch")
    arguments = (torch.randn(3, 4, 9, 8), torch.rand(3, 5))
    program = torch.export.export(layer, arguments, dynamic_shapes=({0: batch}, {0: batch}))
    assert "condconv" not in str(program.graph)
    x, routing = torch.randn(2, 4, 9, 8), torch.rand(2, 5)
    torch.testing.assert_close(program.module()(x, routing), layer(x, routing), rtol=1e-5, atol=1e-4)


def test_vmap() -> None:
    layer, x, routing = Layer(), torch.randn(3, 4, 9, 8), torch.rand(3, 5)
    output = torch.func.vmap(lambda xi, ri: layer(xi[None], ri[None])[0])(x, routing)
    torch.testing.assert_close(output, layer(x, routing), rtol=1e-5, atol=1e-4)


@NATIVE
def test_the_operator_is_registered_as_torch_wants_and_counts() -> None:
    x, routing, bias = torch.randn(2, 4, 5, 5), torch.rand(2, 3), torch.randn(3, 6)
    experts, scale = quantize(torch.randn(3, 6, 4, 3, 3), 1, False)
    geometry = ([1, 1], [1, 1], [1, 1], 1, False, [0, 0])
    arguments = (x, experts, routing, bias, scale, *geometry, "native")
    torch.library.opcheck(torch.ops.condconv.quantized_conv, arguments, rtol=1e-4, atol=1e-4)
    with FlopCounterMode(display=False) as counter:
        torch.ops.condconv.quantized_conv(*arguments)
    kernel = 6 * 4 * 9
    assert counter.get_total_flops() == 2 * (2 * kernel * 25 + 2 * 3 * (kernel + 6))
