"""Run a model without changing it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn
from torch.nn.parameter import is_lazy


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode and restore each module's own mode after."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Run a model in evaluation mode, without gradients and without lasting changes.

    Afterwards buffers that the run changes (such as a count of runs) and random generators are restored. Generators
    have the same state in each run, so a model that draws numbers draws the same ones. Compiled parts run uncompiled,
    since compiled code does not call the hooks of the modules inside, and a full graph cannot be compiled under a mode.
    """
    devices = {each.device for each in (*model.parameters(), *model.buffers()) if each.device.type == "cuda"}
    indices = [torch.cuda.current_device() if device.index is None else device.index for device in devices]
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(indices))
        for generator in (torch.default_generator, *(torch.cuda.default_generators[index] for index in indices)):
            generator.manual_seed(0)
        if "torch._dynamo" in sys.modules:  # takes a second to import, and without it nothing is compiled
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(_keeping_buffers(model))
        stack.enter_context(_buffers_on_meta(model))
        stack.enter_context(evaluating(model))
        stack.enter_context(torch.no_grad())
        yield


@contextmanager
def _keeping_buffers(model: nn.Module) -> Iterator[None]:
    """Restore buffers whose values changed; a cache that is new or has a new shape is kept."""
    kept = [
        (module, name, buffer, buffer._version, buffer.clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None and not is_lazy(buffer) and not buffer.is_inference()
    ]
    try:
        yield
    finally:
        for module, name, buffer, version, values in kept:
            if buffer._version != version:
                with torch.no_grad():
                    buffer.copy_(values)
            now = module._buffers.get(name)
            if now is not None and now is not buffer and (now.shape, now.dtype) == (buffer.shape, buffer.dtype):
                module._buffers[name] = buffer


def is_on_meta(model: nn.Module) -> bool:
    """Return whether the parameters of a model are on the meta device; its buffers may be on another one."""
    return next(model.parameters(), torch.empty(0)).is_meta and all(each.is_meta for each in model.parameters())


@contextmanager
def _buffers_on_meta(model: nn.Module) -> Iterator[None]:
    """Move the buffers of a model on the meta device there too, since some libraries create them with values."""
    moved = [
        (module, name, buffer)
        for module in (model.modules() if is_on_meta(model) else ())
        for name, buffer in module._buffers.items()
        if buffer is not None and not buffer.is_meta
    ]
    for module, name, buffer in moved:
        module._buffers[name] = buffer.to("meta")
    try:
        yield
    finally:
        for module, name, buffer in moved:
            module._buffers[name] = buffer
