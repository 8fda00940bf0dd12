"""Models of other projects that fuse convolutions with batch norms before they are used, as ultralytics does."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import Tensor, nn

from condconv import CondConv2d, convert_


class Block(nn.Module):
    """Loses its norm when it is fused, and is called in another way from then on."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out_channels, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(out_channels)
        self.act = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)))

    def forward_fuse(self, x: Tensor) -> Tensor:
        return self.act(self.conv(x))


def fuse_conv_and_bn(conv: nn.Conv2d, bn: nn.BatchNorm2d) -> nn.Conv2d:
    """Return one convolution that does the work of both."""
    fused = nn.Conv2d(conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, bias=True)
    scale = bn.weight / torch.sqrt(bn.running_var + bn.eps)
    fused.weight.data = conv.weight.view(conv.out_channels, -1).mul(scale[:, None]).view(fused.weight.shape)
    fused.bias.data = bn.bias - bn.running_mean * scale
    return fused


class Detector(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Sequential(Block(3, 8), Block(8, 8), Block(8, 6))

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)

    def fuse(self, verbose: bool = True) -> nn.Module:
        for block in self.modules():
            if isinstance(block, Block) and hasattr(block, "bn"):
                block.conv = fuse_conv_and_bn(block.conv, block.bn)
                del block.bn
                block.forward = block.forward_fuse
        return self


class ConditionalDetector(Detector):
    """What docs/programs.md tells users to write."""

    def fuse(self, verbose: bool = True) -> nn.Module:
        return self


def predict(saved: io.BytesIO, x: Tensor) -> Tensor:
    """Load a pickled model in half precision and use it as such libraries do."""
    saved.seek(0)
    model = torch.load(saved, weights_only=False).float()
    return model.fuse(verbose=False).eval()(x)


def saved(model: nn.Module) -> io.BytesIO:
    buffer = io.BytesIO()
    torch.save(copy.deepcopy(model).half(), buffer)
    return buffer


def trained(model: nn.Module, x: Tensor) -> nn.Module:
    """Run one step, for statistics and weights of their own."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.train()(x).square().mean().backward()
    optimizer.step()
    return model.eval()


@pytest.mark.parametrize("scope", ["layer", "block"])
@torch.no_grad()
def test_a_model_whose_fuse_returns_itself_is_used_as_it_was_trained(scope: str) -> None:
    x = torch.randn(2, 3, 16, 16)
    model = ConditionalDetector()
    convert_(model, 4, layers="model.[12].*", scope=scope, example_input=x)
    with torch.enable_grad():
        trained(model, x)
    found = predict(saved(model), x)
    torch.testing.assert_close(found, model(x), rtol=0.02, atol=0.02)  # weights were rounded to half precision
    assert any(isinstance(module, CondConv2d) for module in model.modules())


@torch.no_grad()
def test_the_way_of_fusing_is_right_for_static_layers_and_stops_at_experts() -> None:
    x = torch.randn(2, 3, 16, 16)
    with torch.enable_grad():
        model = trained(Detector(), x)
    torch.testing.assert_close(copy.deepcopy(model).fuse()(x), model(x))
    convert_(model, 4, layers="model.2.*", example_input=x)
    with pytest.raises(RuntimeError, match="shape"):
        model.fuse()
