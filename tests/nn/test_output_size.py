"""`output_size` of transposed convolutions, as torch's take it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import condconv
from condconv import convert_
from condconv.errors import UsageError

CASES = [
    (nn.ConvTranspose1d(2, 3, 4, stride=3, padding=1, dtype=torch.float64), (9,), [(26,), (27,), (28,)]),
    (nn.ConvTranspose2d(2, 3, (3, 2), stride=(2, 3), padding=(1, 0), dtype=torch.float64), (5, 4), [(9, 12), (10, 13)]),
    (nn.ConvTranspose3d(2, 4, 2, stride=2, groups=2, output_padding=1, dtype=torch.float64), (2, 3, 2), [(4, 7, 5)]),
]


@pytest.mark.parametrize(("static", "size", "wanted"), CASES, ids=["1d", "2d", "3d"])
def test_sizes_are_those_of_torch(static: nn.Module, size: tuple[int, ...], wanted: list[tuple[int, ...]]) -> None:
    x = torch.randn(2, 2, *size, dtype=torch.float64)
    layer = getattr(condconv, f"Cond{type(static).__name__}").from_static(static, 3, experts="dense")
    for each in wanted:
        expected = static(x, output_size=each)
        assert tuple(expected.shape[2:]) == each
        for y in (layer(x, output_size=each), layer(x, list(each)), layer(x, output_size=expected.shape)):
            torch.testing.assert_close(y, expected)
        torch.testing.assert_close(layer(x, torch.ones(2, 3, dtype=torch.float64), each) / 2, expected)
    torch.testing.assert_close(layer(x), static(x))


@pytest.mark.parametrize("size", [(8, 12), (11, 12), (9,), (1, 9, 12)])
def test_sizes_out_of_reach(size: tuple[int, ...]) -> None:
    layer = condconv.CondConvTranspose2d(2, 3, (3, 2), stride=(2, 3), padding=(1, 0), num_experts=2)
    with pytest.raises(
        UsageError, match=r"`output_size` must lie between \(9, 11\) and \(10, 13\) for .* leave it out"
    ):
        layer(torch.randn(2, 2, 5, 4), output_size=size)


class Decoder(nn.Module):
    """Goes down, and up again to the very size, as networks for segmentation do."""

    def __init__(self, by_keyword: bool) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, 4, 3, stride=2)
        self.up = nn.ConvTranspose2d(4, 3, 3, stride=2)
        self.by_keyword = by_keyword

    def forward(self, x: Tensor) -> Tensor:
        y = self.down(x)
        return self.up(y, output_size=x.shape) if self.by_keyword else self.up(y, x.shape[2:])


@pytest.mark.parametrize("by_keyword", [True, False])
@pytest.mark.parametrize("size", [12, 13])
def test_a_model_that_gives_sizes_is_converted(size: int, by_keyword: bool) -> None:
    model = Decoder(by_keyword)
    images = torch.randn(2, 3, size, size)
    report = convert_(model, 3, example_input=images)
    assert [layer.name for layer in report.layers] == ["down", "up"]
    assert model(images).shape == images.shape


def test_a_model_that_gives_sizes_is_exported() -> None:
    model, images = Decoder(by_keyword=True).eval(), torch.randn(2, 3, 13, 13)
    convert_(model, 3, example_input=images)
    exported = torch.export.export(model, (images,)).module()
    torch.testing.assert_close(exported(images), model(images))
