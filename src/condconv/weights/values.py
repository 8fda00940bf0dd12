"""Check the values of weights, of any network."""

from __future__ import annotations

from torch import Tensor

from condconv.errors import UsageError, few
from condconv.nn.conditional import routed_buffers
from condconv.weights.layers import Layers
from condconv.weights.names import Matched

# Other buffers may have their reasons to be infinite, as masks have.
_STATISTIC = "running_"
_VARIANCES = ("running_var", "standardization.var")  # of batch norms, and of the input of routing


def check_values(layers: Layers, matched: Matched, source: str) -> None:
    """Refuse weights of a network that has diverged, or that was damaged: it would compute NaN, silently.

    Args:
        layers: The network.
        matched: A source's tensors under the network's names, which fit.
        source: What to call it in messages.

    Raises:
        UsageError: A parameter, a statistic of a batch norm, or another value of experts or routing is not finite in
            the network's dtype, or a variance is below zero.
    """
    checked = {name for name, _ in layers.model.named_parameters(remove_duplicate=False)}
    checked |= routed_buffers(layers.model, remove_duplicate=False).keys()
    own = dict(zip(matched.tensors, layers.own_names(matched.tensors), strict=True))
    learned = [name for name in matched.tensors if own[name] in checked or _STATISTIC in name.rpartition(".")[2]]
    wrong = [
        matched.sources[name] for name in learned if not _is_right(layers.tensors[name], name, matched.tensors[name])
    ]
    if wrong:
        raise UsageError(
            f"`path` must hold finite weights, and variances of 0 or more, got {source} with others in "
            f"{few(wrong, most=3)}: its network has diverged or the file is damaged; take weights from before, or "
            f"leave these out by skip={wrong[0]!r}"
        )


def _is_right(own: Tensor, name: str, found: Tensor) -> bool:
    values = found.detach().to(own.dtype)
    return bool(values.isfinite().all()) and not (name.endswith(_VARIANCES) and bool((values < 0).any()))
