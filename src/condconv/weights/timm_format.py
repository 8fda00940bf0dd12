"""Convert back to timm: the state dict of its conditional EfficientNets."""

from __future__ import annotations

from torch import Tensor, nn

from condconv.errors import UsageError, shown
from condconv.nn import DenseExperts, RoutingSlot, SigmoidRouting
from condconv.nn.block_routing import routing_functions
from condconv.nn.conditional import conditional_layers


def to_timm_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """Return a network's weights as timm's `efficientnet_cc_*` and `tf_efficientnet_cc_*` hold them.

    Experts are `[E, P]` there, and a block's routing is one linear layer, `routing_fn`. Networks of other sizes, with
    other numbers of experts or other blocks with experts are written too, although timm has none that would load them.

    Args:
        model: `efficientnet_cc_*` or `tf_efficientnet_cc_*` with routing by block; not changed.

    Returns:
        Tensors by timm's names, detached. They share memory with the network, except for experts in the layout
        `torch.channels_last`, which are copied.

    Raises:
        UsageError: timm cannot have such a network: a layer routes by itself, a block routes by another function than
            the paper's, an expert has a bias, or a batch norm is folded.

    Example:
        >>> model = condconv.create_model("tf_efficientnet_cc_b0_4e", num_classes=10)
        >>> import timm
        >>> timm_model = timm.create_model("tf_efficientnet_cc_b0_4e", num_classes=10)
        >>> timm_model.load_state_dict(to_timm_state_dict(model))
        <All keys matched successfully>
    """
    if not isinstance(model, nn.Module):
        raise UsageError(f"`model` must be a torch.nn.Module, got {shown(model)}: give the network itself")
    layers = conditional_layers(model)
    routing = routing_functions(model)
    for name, layer in layers.items():
        function = routing[layer.routing_fn]
        reason = None
        if not isinstance(layer.routing_fn, RoutingSlot):
            reason = "it routes by its own input, not by its block's"
        elif type(function) is not SigmoidRouting:
            reason = f"its block routes by {type(function).__name__}, not by a sigmoid of one linear layer"
        elif function.standardization is not None:
            reason = "its routing standardises its input"
        elif not isinstance(layer.experts, DenseExperts):
            reason = f"its experts are {type(layer.experts).__name__}"
        elif layer.experts.bias is not None or layer.folded_bias is not None:
            reason = "it has a bias or a folded batch norm"
        elif layer.experts.quantized:
            reason = "its experts are quantized"
        if reason is not None:
            raise UsageError(
                f"`model` must be a network that timm has, got one whose {name!r} is not as in timm ({reason}): take "
                "an efficientnet_cc_* or tf_efficientnet_cc_* as condconv.create_model makes it"
            )
    if not layers:
        raise UsageError(
            "`model` must have conditional layers, got a static network: take its state_dict(), which is timm's already"
        )
    functions = {name for name, module in model.named_modules() if isinstance(module, SigmoidRouting)}
    state = {}
    for name, tensor in model.state_dict().items():
        owner, _, leaf = name.rpartition(".")
        if owner.removesuffix(".experts") in layers:
            state[f"{owner.removesuffix('.experts')}.{leaf}"] = tensor.flatten(1)
        elif owner.removesuffix(".fc") in functions:
            state[f"{owner.removesuffix('.fc')}.{leaf}"] = tensor
        else:
            state[name] = tensor
    return state
