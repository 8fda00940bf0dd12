"""One module with its input, ready to be run again and again in one layout, precision and mode."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from condconv.nn import CondConv2d

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
MODES = ("inference", "training")
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


@dataclass(frozen=True)
class Conditions:
    """How modules are run.

    Attributes:
        mode: "inference": a forward pass in `torch.inference_mode`; "training": forward, backward and, for a network,
            a step of plain SGD.
        dtype: "fp32" or "bf16". In bf16 inference the module is converted; in bf16 training its parameters stay fp32
            under autocast, as one trains.
        device: Where.
        compiled: Whether by `torch.compile`.
        impl: Of the conditional two-dimensional convolutions, as in `condconv.ops.cond_conv2d`; `None` leaves them as
            they are.
    """

    mode: str = "inference"
    dtype: str = "fp32"
    device: str = "cpu"
    compiled: bool = False
    impl: str | None = None


class Contender:
    """A copy of a module that runs under given conditions when it is called.

    In training the gradients of all parameters are computed, and of a layer's inputs too, as inside a network. They
    belong to a fixed random gradient of the output, so that no loss function is timed.

    Args:
        module: Copied.
        inputs: Its positional arguments; brought to layout, dtype and device.
        conditions: How it is run.
        layout: A key of `LAYOUTS`.
        dtype: Of parameters and inputs; `None` for the one that the conditions say.
    """

    def __init__(
        self,
        module: nn.Module,
        inputs: tuple[Tensor, ...],
        conditions: Conditions,
        layout: str = "contiguous",
        dtype: torch.dtype | None = None,
    ) -> None:
        self.training = conditions.mode == "training"
        self.autocasts = self.training and dtype is None and conditions.dtype != "fp32"
        self.device = conditions.device
        own = dtype or (torch.float32 if self.training else DTYPES[conditions.dtype])
        module = copy.deepcopy(module).train(self.training).to(self.device, own)
        for each in module.modules():
            if conditions.impl is not None and isinstance(each, CondConv2d):
                each.impl = conditions.impl
        self.module: nn.Module = module.to(memory_format=LAYOUTS[layout])
        self.is_network = not isinstance(module, CondConv2d) and len(list(module.children())) > 1
        self.inputs = tuple(_lay_out(each.to(self.device, own), layout) for each in inputs)
        parameters = module.named_parameters()  # experts are named as the static layer and timm name theirs
        self.leaves: dict[str, Tensor] = {name.replace("experts.", ""): each for name, each in parameters}
        if self.training and not self.is_network:
            self.inputs = tuple(each.requires_grad_() for each in self.inputs)
            self.leaves |= {f"input {index}": each for index, each in enumerate(self.inputs)}
        # Without a learning rate each step does the same work on the same numbers.
        self.optimizer = torch.optim.SGD(module.parameters(), lr=0.0) if self.training and self.is_network else None
        self.gradient: Tensor | None = None
        self.call = torch.compile(self.module) if conditions.compiled else self.module

    def __call__(self) -> Tensor:
        """Run once; return the output, `[B, ...]`."""
        if not self.training:
            with torch.inference_mode():
                return self.call(*self.inputs)
        self.clear_gradients()
        with self._autocast():
            output: Tensor = self.call(*self.inputs)
        if self.gradient is None:
            random = torch.Generator().manual_seed(0)
            self.gradient = torch.randn(output.shape, generator=random).to(output.device, output.dtype)
        output.backward(self.gradient)
        if self.optimizer is not None:
            self.optimizer.step()
        return output.detach()

    def results(self) -> dict[str, Tensor]:
        """Run once; return the output and, in training, the gradients by name, in fp64 on the CPU."""
        found = {"output": self()}
        if self.training:
            found |= {f"gradient of {name}": leaf.grad for name, leaf in self.leaves.items() if leaf.grad is not None}
        return {name: tensor.detach().to("cpu", torch.float64) for name, tensor in found.items()}

    def clear_gradients(self) -> None:
        """Free the gradients of the last call."""
        for leaf in self.leaves.values():
            leaf.grad = None

    def parameter_bytes(self) -> int:
        """Return the bytes of the parameters."""
        return sum(each.numel() * each.element_size() for each in self.module.parameters())

    @contextlib.contextmanager
    def _autocast(self) -> Iterator[None]:
        with torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=self.autocasts):
            yield


def _lay_out(tensor: Tensor, layout: str) -> Tensor:
    memory_format = LAYOUTS[layout] if tensor.dim() == 4 else torch.contiguous_format
    return tensor.detach().contiguous(memory_format=memory_format)
