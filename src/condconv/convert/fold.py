"""Fold every batch norm that follows a conditional layer into its experts."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from condconv.convert.surgery import replace
from condconv.convert.verification import check_same_output, output_tensors
from condconv.counting.tracing import arguments_of, undisturbed
from condconv.errors import UsageError, check_type, shown
from condconv.nn import ConditionalLayer, fold_batch_norm
from condconv.nn.folding import why_not_fold
from condconv.nn.foreign import full_name
from condconv.nn.hooks import why_not_hooks


def fold_batch_norms_(model: nn.Module, example_input: Any = None) -> list[tuple[str, str]]:
    """Fold each batch norm right after a conditional layer into the layer's experts, in place, for inference.

    One forward pass shows which norm follows which layer: the norm must get the very tensor that the layer returned,
    and both must run once. The norm is replaced by a `torch.nn.Identity`, or by what timm's norms do after normalising.
    The output is checked on the example, and the model stays in evaluation mode.

    Args:
        model: A network with conditional layers.
        example_input: A tensor or a tuple of arguments; `None` to use an image of the usual size.

    Returns:
        Names of the folded pairs, layer and norm, in the order in which they run.

    Raises:
        UsageError: A layer or norm has backward or state-dict hooks, or a norm has its own forward or no running
            statistics. Nothing has been changed.
        ValueError: No example is given, and none can be guessed or the model fails on the guess; or the output holds no
            tensors.
        UsageError: The folded model's output was not the same (something else uses an output that is folded away); it
            has been restored.

    Example:
        >>> net = torch.nn.Sequential(condconv.CondConv2d(3, 8, 3), torch.nn.BatchNorm2d(8))
        >>> condconv.fold_batch_norms_(net, torch.randn(1, 3, 8, 8))
        [('0', '1')]
    """
    folded, left = fold_those_that_can_(model, example_input, all_or_none=True)
    for name, reason in left.values():
        raise UsageError(f"`model` must have layers and norms that can be folded, got {shown(name)}: {reason}")
    return folded


def fold_those_that_can_(
    model: nn.Module, example_input: Any = None, *, all_or_none: bool = False
) -> tuple[list[tuple[str, str]], dict[str, tuple[str, str]]]:
    """Do the same as `fold_batch_norms_`, but leave pairs that cannot be folded unchanged.

    Args:
        model: As in `fold_batch_norms_`.
        example_input: As in `fold_batch_norms_`.
        all_or_none: Whether to change nothing if a pair cannot be folded.

    Returns:
        Names of the folded pairs; and for each other layer the reason, after the name of the module that has it.

    Raises:
        ValueError: As in `fold_batch_norms_`.
        UsageError: As in `fold_batch_norms_`.
    """
    check_type("model", model, nn.Module, "be a torch.nn.Module", "give the network itself")
    with arguments_of(model, example_input) as example:
        pairs, output = find_norms(model, example)
    names = {module: name for name, module in model.named_modules()}
    reasons = {names[pair[0]]: _why_not(*pair, names) for pair in pairs}
    left = {layer: reason for layer, reason in reasons.items() if reason is not None}
    if left and all_or_none:
        return [], left
    pairs = [pair for pair in pairs if names[pair[0]] not in left]
    folded = [(names[layer], names[norm]) for layer, norm in pairs]
    with ExitStack() as undo:
        for layer, norm in pairs:
            plain, rest = _split(norm)
            undo.callback(replace(model, layer, fold_batch_norm(layer, plain)))
            undo.callback(replace(model, norm, rest))
        if not check_same_output(model, example, output):
            raise UsageError(
                f"`model` must give tensors to be checked, in tuples, lists, dicts or dataclasses, got a "
                f"{type(output).__name__}: it has been restored; fold its parts"
            )
        undo.pop_all()
    model.eval()
    return folded, left


def _why_not(layer: ConditionalLayer, norm: _BatchNorm, names: Mapping[nn.Module, str]) -> tuple[str, str] | None:
    """Return why a pair cannot be folded, after the name of the module with the reason, or `None`."""
    plain: Any = _split(norm)[0]
    reasons = ((layer, why_not_hooks(layer)), (norm, why_not_hooks(norm) or why_not_fold(layer, plain)))
    return next(((names[module], reason) for module, reason in reasons if reason is not None), None)


def _split(norm: Any) -> tuple[nn.Module, nn.Module]:
    """Return the normalisation itself, and what a timm module does after it."""
    if full_name(type(norm)) != "timm.layers.norm_act.BatchNormAct2d":
        return norm, nn.Identity()
    options = {"affine": norm.affine, "track_running_stats": norm.track_running_stats}
    plain = nn.BatchNorm2d(norm.num_features, norm.eps, device="meta", **options)
    own = norm.state_dict()  # with its activation's
    plain.load_state_dict({name: own[name] for name in plain.state_dict()}, assign=True)
    return plain, nn.Sequential(norm.drop, norm.act)


def find_norms(model: nn.Module, arguments: tuple[Any, ...]) -> tuple[list[tuple[ConditionalLayer, _BatchNorm]], Any]:
    """Return conditional layers with the batch norms that take their outputs, and the model's output.

    Args:
        model: Run once in evaluation mode; does not change.
        arguments: Arguments of that run.
    """
    outputs: list[tuple[ConditionalLayer, Tensor]] = []  # kept alive, so that no id is used twice
    inputs: list[tuple[_BatchNorm, Tensor]] = []
    uses = _Uses()

    def after_layer(layer: Any, args: Any, output: Tensor) -> None:
        outputs.append((layer, output))
        uses.count[id(output)] = 0

    def before_norm(norm: Any, args: tuple[Any, ...]) -> None:
        inputs.extend((norm, value) for value in args[:1] if isinstance(value, Tensor))

    handles = []
    try:
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                handles.append(module.register_forward_pre_hook(before_norm))
            if isinstance(module, ConditionalLayer):
                handles.append(module.register_forward_hook(after_layer))
        with undisturbed(model), uses:
            result = model(*arguments)
    finally:
        for handle in handles:
            handle.remove()
    runs = [id(module) for module, _ in (*outputs, *inputs)]
    given = {id(tensor) for tensor in output_tensors(result)}
    pairs = [
        (layer, norm)
        for layer, output in outputs
        for norm, value in inputs
        if value is output
        and uses.count[id(value)] == 1
        and id(value) not in given
        and runs.count(id(layer)) == runs.count(id(norm)) == 1
    ]
    return pairs, result


class _Uses(TorchDispatchMode):
    """Counts the operations that take one of the tensors in `count`, by `id`: modules', and those between them."""

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()
        self.count: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for taken in {id(leaf) for leaf in tree_leaves((args, kwargs))} & self.count.keys():
            self.count[taken] += 1
        return func(*args, **(kwargs or {}))
