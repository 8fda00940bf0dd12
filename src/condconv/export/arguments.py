"""Check the arguments of an export, for all formats."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from condconv.errors import UsageError, check_type, first_line, one_line, shown, shown_name
from condconv.export.storage import WEIGHTS
from condconv.export.verification import check_output
from condconv.files import paths
from condconv.nn.conditional import conditional_layers

_PACKAGES = (".mlpackage",)  # directories that count as a file


def check_path(path: Path, format: str, suffix: str) -> None:
    """Refuse a path that cannot become a file of a format.

    Args:
        path: The file to write.
        format: The format's name, for messages.
        suffix: The suffix of its files, with the dot.

    Raises:
        UsageError: Another suffix, no directory to write into, a directory, a pipe or a device in the file's place, or
            an impossible name.
    """
    named = shown_name(path)
    if path.suffix != suffix:
        raise UsageError(
            f"`path` must end in {suffix} for {format}, got {named}: name it "
            f"{shown_name(path.stem or 'network')}{suffix}"
        )
    paths.check_path(path, "path")
    if not path.resolve().parent.is_dir():
        raise UsageError(f"`path` must be in a directory that exists, got {named}: make it first")
    if path.is_dir() and suffix not in _PACKAGES:
        raise UsageError(f"`path` must be a file, got the directory {named}: take another name")
    if paths.is_special(path):  # a file would take its place, and whoever reads from it would wait forever
        raise UsageError(
            f"`path` must be a file, got a pipe or a device, {named}: take another name, and copy the file"
        )


def check_model(model: Any) -> None:
    """Check that the model is a plain network in fp32.

    Raises:
        UsageError: With the reason and the remedy.
    """
    if not isinstance(model, nn.Module):
        raise UsageError(f"`model` must be a torch.nn.Module, got a {type(model).__name__}: give the network itself")
    if isinstance(model, torch._dynamo.OptimizedModule):
        raise UsageError("`model` must not be compiled, got the result of torch.compile: give the network itself")
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        raise UsageError(f"`model` must not be wrapped, got a {type(model).__name__}: give model.module")
    if isinstance(model, torch.jit.ScriptModule | torch.fx.GraphModule):
        raise UsageError(
            "`model` must be an ordinary module, got a scripted or traced one: give the network before that"
        )
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and module.running_mean is None:
            raise UsageError(
                f"`model` must compute each example by itself, got {shown(name)}, a batch norm without running "
                "statistics: give it track_running_stats=True and train it"
            )
    tensors = [*model.parameters(), *model.buffers()]
    unset = nn.parameter.UninitializedParameter | nn.parameter.UninitializedBuffer
    if any(tensor.is_meta or isinstance(tensor, unset) for tensor in tensors):
        raise UsageError("`model` must have values in its weights, got some without: load them, or run it once")
    if any(layer.experts.quantized for layer in conditional_layers(model).values()):
        raise UsageError(
            "`model` must have ordinary experts, got quantized ones: export the network as it was before "
            'quantize_experts_, with weights="int8" or "bfloat16" for a small file'
        )
    numbers = (each.dtype for each in model.parameters() if each.is_floating_point() or each.is_complex())
    dtypes = {*numbers} - {torch.float32}
    if dtypes:
        raise UsageError(f"`model` must be in torch.float32, got {dtypes.pop()}: give model.float()")


def check_example(example_input: Tensor) -> None:
    """Check that the example is a batch of fp32 examples.

    Raises:
        UsageError: With the reason and the remedy.
    """
    if not isinstance(example_input, Tensor):
        raise UsageError(
            f"`example_input` must be a tensor [B, C, ...], got a {type(example_input).__name__}: torch.zeros(...) is "
            "one"
        )
    if example_input.dim() < 2 or example_input.dtype != torch.float32 or len(example_input) < 1:
        raise UsageError(
            f"`example_input` must be a torch.float32 tensor [B, C, ...], got {example_input.dtype} "
            f"{tuple(example_input.shape)}: convert it, and give one example or more"
        )


def check_batch(batch: Any) -> None:
    """Check that a batch size is a positive number, or `None` for any.

    Raises:
        UsageError: With the reason and the remedy.
    """
    if batch is not None and (type(batch) is not int or batch < 1):
        raise UsageError(f"`batch` must be a whole number of at least 1 or None, got {shown(batch)}: None is for any")


def check_options(dynamic_batch: Any, max_batch: Any, dynamic_size: Any, opset: Any, weights: Any) -> None:
    """Refuse options out of range; arguments as those of `condconv.export.export`.

    Raises:
        UsageError: With the reason and the remedy.
    """
    for name, flag in (("dynamic_batch", dynamic_batch), ("dynamic_size", dynamic_size)):
        check_type(name, flag, bool, "be True or False", "give one of them")
    for name, number in (("max_batch", max_batch), ("opset", opset)):
        if number is not None and type(number) is not int:
            raise UsageError(f"`{name}` must be a whole number or None, got {shown(number)}: give one of them")
    if weights not in WEIGHTS:
        raise UsageError(f"`weights` must be one of {', '.join(WEIGHTS)}, got {shown(weights)}: take one of them")
    if max_batch is not None and (max_batch < 2 or not dynamic_batch):
        raise UsageError(
            f"`max_batch` must be at least 2, with a dynamic batch, got {shown(max_batch)}: for a fixed one give an "
            "example of that size and dynamic_batch=False"
        )


def check_class_names(names: Any) -> None:
    """Check that class names are a sequence of texts.

    Raises:
        UsageError: With the reason and the remedy.
    """
    if isinstance(names, str):
        raise UsageError(f"`class_names` must be a sequence of names, got the text {shown(names)}: give a list")
    if not isinstance(names, Sequence):
        raise UsageError(f"`class_names` must be a sequence of names, got a {type(names).__name__}: give a list")
    if wrong := [each for each in names if not isinstance(each, str)]:
        raise UsageError(f"`class_names` must be texts, got {shown(wrong[0])}: give str(...) of it")


def check_outputs(model: nn.Module, example_input: Tensor, class_names: Sequence[str] | None) -> None:
    """Run the network once on the example; it is on the CPU and in evaluation mode.

    Raises:
        UsageError: It cannot take the example, does not return one tensor `[B, ...]`, or has another number of outputs
            than there are names.
    """
    try:
        with torch.no_grad():
            output = model(example_input)
    except Exception as error:  # of any kind: it is the model's own
        shape = ", ".join(map(str, example_input.shape[1:]))
        raise UsageError(
            f"`example_input` must be a batch that the model takes, got [B, {shape}]: "
            f"{one_line(first_line(error))[:200]}; give an example of another shape"
        ) from error
    check_output(output, len(example_input))
    if class_names is not None and output.dim() == 2 and len(class_names) != output.shape[1]:
        raise UsageError(
            f"`class_names` must have one name for each output, {output.shape[1]}, got {len(class_names)}: give "
            "the names in the order of the outputs"
        )
