"""Register the networks in timm, so that timm's functions and scripts find them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any
from weakref import WeakSet

from torch import nn

from condconv.errors import require_extra
from condconv.models.names import list_models, parse_name
from condconv.models.pretrained import PREFIX, describe_weights, source_in_timm
from condconv.models.registry import create_model

__all__ = ["register_timm_models"]

created: WeakSet[nn.Module] = WeakSet()
"""The networks that timm was given, as long as they live."""

default_cfgs: dict[str, Any] = {}
"""What timm keeps of each network: size and normalisation of its images, names of its first and last layer."""


def register_timm_models() -> list[str]:
    """Make `timm.create_model("condconv_mobilenet_v1_cc_050_8e")` find the networks; calling it again changes nothing.

    Arguments of `condconv.create_model` work too: `routing`, `first_layer` and so on. For scripts, see
    `condconv.models.with_timm`.

    Returns:
        The names, those of `condconv.list_models()` with the prefix `condconv_`.

    Raises:
        MissingExtraError: timm is not installed.

    Example:
        >>> import timm
        >>> names = condconv.register_timm_models()
        >>> model = timm.create_model("condconv_mobilenet_v1_cc_025_4e", num_classes=10, in_chans=1)
        >>> model(torch.randn(2, 1, 64, 64)).shape
        torch.Size([2, 10])
    """
    registry = require_extra("timm.models", "models")
    names = [PREFIX + name for name in list_models()]
    for name in names:
        if not registry.is_model(name):
            default_cfgs[name] = _default_cfg(name.removeprefix(PREFIX))
            registry.register_model(_entry_point(name))
    del __all__[1:]  # timm adds each name, as if it were a function of this module
    return names


def _default_cfg(name: str) -> Any:
    """Return timm's entry: the weights of the network that `pretrained` starts from, by their tags."""
    models = require_extra("timm.models", "models")
    parsed = parse_name(name)
    source = source_in_timm(parsed)
    tags = [each.partition(".")[2] for each in models.get_arch_pretrained_cfgs(source)] if source else [""]
    cfgs = {tag: describe_weights(parsed, tag) for tag in tags}
    return models.DefaultCfg(tags=deque(tags), cfgs=cfgs)


def _entry_point(name: str) -> Callable[..., nn.Module]:
    def build(**options: Any) -> nn.Module:
        if isinstance(options.get("pretrained_cfg"), dict):  # of a checkpoint, which may be of other classes, channels
            cfg = models.PretrainedCfg(**options["pretrained_cfg"])
            options = {"num_classes": cfg.num_classes, "in_chans": cfg.input_size[0], **options}
        if options.get("pretrained") and "pretrained_model_args" in options:
            options.pop("init", None)  # how a saved network started before it was trained
        model = create_model(name.removeprefix(PREFIX), **options)
        created.add(model)
        return model

    models = require_extra("timm.models", "models")
    build.__name__ = build.__qualname__ = name
    build.__doc__ = f"Return the network {name.removeprefix(PREFIX)!r}; see `condconv.create_model`."
    return build
