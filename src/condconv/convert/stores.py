"""Exchange what the experts of layers are stored as."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from condconv.errors import UsageError, check_type, few, shown
from condconv.nn import Experts
from condconv.nn.conditional import conditional_layers
from condconv.nn.experts import ExpertsOption, make_experts


def exchange_experts_(model: nn.Module, stores: Mapping[str, ExpertsOption]) -> None:
    """Give layers experts of another kind, without values, in place: to load those of a compressed network.

    Args:
        model: A network with conditional layers; on the meta device too. Unchanged after an error.
        stores: By the layer's name its experts, as `experts=` of a layer; such as `CompressionReport.stores`.

    Raises:
        UsageError: There is no conditional layer of a name, or it cannot have these experts or not with its routing.

    Example:
        >>> net = torch.nn.Sequential(condconv.CondConv2d(3, 8, 3, num_experts=4))
        >>> exchange_experts_(net, {"0": "shared(outputs=2)"})
        >>> net[0].experts.outputs.rank
        2
    """
    check_type("model", model, nn.Module, "be a torch.nn.Module", "give the network itself")
    check_type("stores", stores, Mapping, "map layers' names to experts", "give a dictionary, report.stores")
    layers = conditional_layers(model)
    made = {}
    for name, experts in stores.items():
        if name not in layers:
            raise UsageError(
                f"`stores` must be for conditional layers of the network, got {shown(name)}: there are "
                f"{few(layers, most=8) or 'none'}"
            )
        made[name] = experts_like(layers[name].experts, experts)
        if made[name].parts != layers[name].experts.parts:  # the routing function stays, and gives what it gave
            raise UsageError(
                f"`stores` must be routed as the experts of the layer are, got {shown(experts)} for {shown(name)}: "
                "take experts whose routing vector has the same parts"
            )
    for name, new in made.items():
        layers[name].experts = new


def experts_like(experts: Experts, wanted: ExpertsOption) -> Experts:
    """Return experts of another kind for the place of given ones, without values.

    Raises:
        UsageError: The layer cannot have them.
    """
    first = next(experts.parameters())
    new = make_experts(wanted, experts.spec, experts.num_experts, device=first.device, dtype=experts.dtype)
    new.requires_grad_(any(each.requires_grad for each in experts.parameters()))
    return new.train(experts.training)
