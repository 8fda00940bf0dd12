"""A load that cannot be done, with what is needed to find the reason."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from condconv.weights.fit import Fit
from condconv.weights.layers import Layers
from condconv.weights.names import Matched


@dataclass(frozen=True)
class Misfit:
    """A load that cannot be done.

    Attributes:
        layers: The network.
        state: The source's tensors.
        matched: These under the network's names.
        fit: Why they do not fit.
    """

    layers: Layers
    state: Mapping[str, Tensor]
    matched: Matched
    fit: Fit

    def module(self, name: str) -> nn.Module | None:
        """Return a module of the network, or `None` if there is none of that name."""
        return self.layers.modules.get(name)

    def tensor(self, name: str) -> Tensor:
        """Return the source's tensor for a name of the network."""
        return self.matched.tensors[name]

    @property
    def is_of_other_layers(self) -> bool:
        """Whether convolutions or linear layers, not only other layers, are missing, left over or of other shapes."""
        own = [self.layers.tensors[name] for name in (*self.fit.missing, *self.fit.misfits) if is_weight(name)]
        theirs = [self.state[name] for name in self.matched.unknown if is_weight(name)]
        return any(tensor.dim() > 1 for tensor in (*own, *theirs))


def is_weight(name: str) -> bool:
    """Return whether a name is that of a layer's kernel or experts."""
    return name.rpartition(".")[2] in ("weight", "experts")
