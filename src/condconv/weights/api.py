"""`load_pretrained`: load existing weights of any origin into a network with experts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from condconv.errors import UsageError, shown
from condconv.nn.choice import LayerChoice, patterns_of
from condconv.nn.experts import is_expert_spread
from condconv.weights.files import path_shown, read_file
from condconv.weights.layers import Layers
from condconv.weights.load_plan import look_at, plan_load
from condconv.weights.report import LoadReport
from condconv.weights.snapshots import load_snapshots
from condconv.weights.source import Source, find_source
from condconv.weights.tensorflow import (
    from_tensorflow,
    is_tensorflow_checkpoint,
    note_averages,
    read_tensorflow_checkpoint,
)
from condconv.weights.write import copy_tensors_, spread_kernels_, start_routing_


def load_pretrained(
    model: nn.Module,
    path: str | Path | Sequence[str | Path],
    *,
    skip: LayerChoice | None = None,
    averaged: bool = True,
    expert_spread: float = 0.5,
    example_input: Any = None,
) -> LoadReport:
    """Load weights into a network, in place; all or nothing.

    The names and shapes in a file decide what it is:

    - a state dict of this network, wrapped for training or not, or a checkpoint of `condconv train`;
    - timm's `tf_efficientnet_cc_*` and the common ports, whose experts are `[E, P]` or `[E, O, I, *K]`;
    - the authors' TensorFlow checkpoints;
    - a static network, timm's, torchvision's or your own: each conditional layer starts from its kernel, with an even
      routing, so that the network computes what the static one does until it is trained further;
    - several checkpoints of one static network, one for each expert (snapshots of a run, or independent runs): expert e
      is the kernel of checkpoint e with its batch norm, all layers without experts are those of the first, and the
      network starts as the average.

    A state dict does not contain the padding of its network, the epsilon of batch norms, or the routing function: load
    one of `tf_efficientnet_*` into that network, not into `efficientnet_*`, where it would fit and be slightly wrong.
    What follows from the names (torchvision's, TensorFlow's, timm's routing) is checked.

    Args:
        model: A conditional network, or a static one. Its parameters stay the same objects.
        path: A torch or safetensors file with any suffix, the prefix or folder of a TensorFlow checkpoint, a folder of
            the Hugging Face hub; or E files of static networks.
        skip: Names whose tensors stay as they are in the network and are ignored in the source, as a `LayerChoice`:
            patterns, such as `"classifier.*"`, or a function of the name of a tensor and the module that holds it
            (`None` for a name that only the source has); `None` for none.
        averaged: Take averaged weights if a file has both; the report says so. `False` takes the plain ones.
        expert_spread: Difference between experts made from one kernel, relative to its standard deviation; it cancels
            in the mixture. Experts of several checkpoints get none.
        example_input: For several checkpoints: a tensor or tuple of arguments for the model, to find which norm follows
            which layer; `None` to use an image of the usual size.

    Returns:
        What was done.

    Raises:
        UsageError: A file cannot be read, or does not fit. The message has names and shapes, and what it probably is.
        MissingExtraError: The file needs safetensors or TensorFlow, which is not installed.

    Source:
        Names and layouts of the authors' code (tensorflow/tpu, efficientnet/condconv) and of timm. Starting experts
        from one trained kernel is ours.

    Example:
        >>> import os, tempfile
        >>> static = condconv.create_model("mobilenet_v1_025", num_classes=10).eval()
        >>> path = os.path.join(tempfile.mkdtemp(), "static.pth")
        >>> torch.save(static.state_dict(), path)
        >>> model = condconv.create_model("mobilenet_v1_cc_025_4e", num_classes=10).eval()
        >>> report = load_pretrained(model, path)
        >>> x = torch.randn(1, 3, 64, 64)
        >>> torch.allclose(model(x), static(x), atol=1e-4)
        True
    """
    layers = _check(model, skip, averaged, expert_spread)
    if not isinstance(path, (str, Path)):
        sources = [_read(layers, each, averaged) for each in _paths(path)]
        return load_snapshots(layers, sources, skip, example_input)
    return replace(_load(layers, _read(layers, path, averaged), skip, expert_spread), source=str(path))


def load_state_dict(
    model: nn.Module,
    state: Mapping[str, Any],
    *,
    skip: LayerChoice | None = None,
    averaged: bool = True,
    expert_spread: float = 0.5,
    source: str = "state dict",
) -> LoadReport:
    """Load tensors by name into a network, in place, as `load_pretrained` does for a file.

    Args:
        model: The network.
        state: Tensors by name, or nested mappings that contain them, such as `{"state_dict": ...}`.
        skip: As in `load_pretrained`.
        averaged: As in `load_pretrained`.
        expert_spread: As in `load_pretrained`.
        source: What to call it in messages.

    Returns:
        What was done.

    Raises:
        UsageError: It does not fit.
    """
    layers = _check(model, skip, averaged, expert_spread)
    if not isinstance(state, Mapping):
        what = type(state).__name__
        remedy = "use load_pretrained" if isinstance(state, (str, Path)) else "give what its state_dict() returns"
        raise UsageError(f"`state` must be a mapping of names to tensors, got {what}: for a file or network, {remedy}")
    return _load(layers, find_source(state, source, layers, averaged), skip, expert_spread)


def read_weights(model: nn.Module, path: str | Path) -> dict[str, Tensor]:
    """Return the weights of a file by its own names, averaged ones if there are both. No code in the file is run.

    Args:
        model: The network that they are for, or one with similar names.
        path: One of the files that `load_pretrained` takes.

    Raises:
        UsageError: The file cannot be read, or holds no weights.
        MissingExtraError: The file needs safetensors or TensorFlow, which is not installed.
    """
    return _read(look_at(model), path, averaged=True).tensors


def _load(layers: Layers, source: Source, skip: LayerChoice | None, expert_spread: float) -> LoadReport:
    plan = plan_load(layers, source, skip)
    copy_tensors_(layers, plan.fit.copies)
    starts = start_routing_(layers, plan.fit.static)
    spread_kernels_(layers, starts, plan.matched.tensors, expert_spread)
    copied, skipped = layers.own_names(plan.fit.copies), layers.own_names(plan.skipped)
    return LoadReport(source.name, plan.matched.how, copied, plan.fit.static, skipped, plan.notes)


def _check(model: nn.Module, skip: LayerChoice | None, averaged: bool, expert_spread: float) -> Layers:
    """Return the network as a load sees it."""
    if not is_expert_spread(expert_spread):
        raise UsageError(
            f"`expert_spread` must be a number of 0 or more, got {shown(expert_spread)}: 0.5 is the default"
        )
    if not isinstance(averaged, bool):
        raise UsageError(f"`averaged` must be True or False, got {shown(averaged)}: False loads the plain weights")
    if skip is not None:
        patterns_of(skip, "skip")
    if not isinstance(model, nn.Module):
        raise UsageError(f"`model` must be a torch.nn.Module, got {shown(model)}: create the network first")
    return look_at(model)


def _paths(path: Any) -> Sequence[str | Path]:
    """Return the paths of several checkpoints."""
    if isinstance(path, Mapping):
        raise UsageError(
            f"`path` must be a file, got a {type(path).__name__}: for tensors in memory use "
            "condconv.weights.load_state_dict"
        )
    if isinstance(path, bytes) or not isinstance(path, Sequence):
        raise UsageError(
            f"`path` must be a string or a Path, or a list of them, got {shown(path)}: give the name of a file"
        )
    other = [each for each in path if not isinstance(each, (str, Path))]
    if other:
        raise UsageError(f"`path` must be a list of strings or Paths, got {shown(other[0])} in it: give names of files")
    return path


def _read(layers: Layers, path: str | Path, averaged: bool) -> Source:
    name = path_shown(path)
    try:
        if is_tensorflow_checkpoint(path):
            variables = read_tensorflow_checkpoint(path, layers.most_entries)
            state = from_tensorflow(variables, layers.model, averaged=averaged)
            return Source(name, state, note_averages(variables, averaged))
        return find_source(read_file(path, layers.most_entries), name, layers, averaged)
    except OSError as error:
        raise UsageError(
            f"`path` must be a file that can be read, got {name} ({error.strerror or error}): check its name "
            "and permissions"
        ) from error
