"""Trained weights: where timm has them, and how they are loaded into a network that already has experts."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from torch import Tensor, nn

from condconv.errors import UsageError, require_extra, shown
from condconv.models.families import Family
from condconv.models.names import Name
from condconv.models.recipe import Recipe
from condconv.weights import load_state_dict
from condconv.weights.api import read_weights

PREFIX = "condconv_"
"""Before each name in timm. It has names such as `resnet50` and `efficientnet_cc_b0_4e` itself, and takes no slash."""

CONDITIONAL = {
    "tf_efficientnet_cc_b0_4e": "tf_efficientnet_cc_b0_4e",
    "tf_efficientnet_cc_b0_8e": "tf_efficientnet_cc_b0_8e",
    "tf_efficientnet_cc_b0_depth_8e": "tf_efficientnet_cc_b1_8e",
}
"""Networks whose conditional weights timm has, the authors' release, and what timm calls them."""

# timm's B1 takes images of 240 pixels and more; the paper's B0 of more depth takes those of B0.
_IMAGES_OF_B0 = {"input_size": (3, 224, 224), "pool_size": (7, 7), "crop_pct": 0.875}
_IMAGES_OF_B0 |= dict.fromkeys(("test_input_size", "test_crop_pct"))


def source_in_timm(name: Name) -> str | None:
    """Return timm's name of the network, conditional or static, whose weights fit best, or `None` if there is none."""
    return CONDITIONAL.get(str(name)) or name.family.timm_name(name.size)


def describe_weights(
    name: Name, pretrained_cfg: Any = None, pretrained_cfg_overlay: Mapping[str, Any] | None = None
) -> Any:
    """Return timm's `PretrainedCfg` of a network: its weights, and the images that it takes.

    Args:
        name: Name of the network.
        pretrained_cfg: As in `timm.create_model`: a tag, or a whole description; `None` for timm's default.
        pretrained_cfg_overlay: Entries that replace those of the description.

    Raises:
        UsageError: A tag is given, but timm has no weights of this network.
    """
    source = source_in_timm(name)
    if source is None and isinstance(pretrained_cfg, str) and pretrained_cfg:
        raise UsageError(
            f"`pretrained_cfg` must not be a tag for {str(name)!r}, got {shown(pretrained_cfg)}: leave it out, timm "
            "has none"
        )
    if source is None:
        pretrained_cfg = pretrained_cfg or {
            "first_conv": name.family.stem,
            "classifier": name.family.classifier,
            "input_size": (3, name.family.image_size, name.family.image_size),
            # Of the last map, as timm's networks of these families say.
            "pool_size": (name.family.image_size // name.family.output_strides[-1],) * 2,
        }
    timms = pretrained_cfg is None or isinstance(pretrained_cfg, str)
    images = _IMAGES_OF_B0 if timms and name.size == "b0_depth" else {}
    architecture = PREFIX + str(name)
    overlay = {**images, **(pretrained_cfg_overlay or {}), "architecture": architecture}
    return require_extra("timm.models", "models").resolve_pretrained_cfg(
        source or architecture, pretrained_cfg, overlay
    )


def check_weights(name: Name, cfg: Any, recipe: Recipe) -> None:
    """Check that there are weights, and that no option would lose or change them.

    Raises:
        UsageError: There are none, or the recipe does not fit them.
    """
    own = cfg.file or cfg.state_dict or cfg.source
    if not (own or cfg.has_weights):
        raise UsageError(
            f"`pretrained` must be False for {str(name)!r}, got True: no weights are published for this network; "
            "condconv.load_pretrained reads your own"
        )
    conditional = str(name) in CONDITIONAL and not own
    for argument, trained in (("routing", "sigmoid"), ("experts", "dense")):
        if conditional and getattr(recipe, argument) not in (None, trained):
            raise UsageError(
                f'`{argument}` must be "{trained}" with the weights of {str(name)!r}, which were trained with it, got '
                f"{shown(getattr(recipe, argument))}: leave one of the two out"
            )
    if recipe.init not in ((None,) if conditional else (None, "same_output")):
        raise UsageError(
            f"`init` must be None with pretrained, got {shown(recipe.init)}: leave it out, experts start "
            "from the trained weights"
        )


def load_weights_(
    model: nn.Module, name: Name, cfg: Any, start: Mapping[str, Tensor], expert_spread: float, cache_dir: Any = None
) -> None:
    """Load the weights that timm describes into a network, in place.

    timm finds and downloads the file, and adapts it to other numbers of channels and classes. A static kernel becomes
    all experts of its layer, so that the network computes what the static one does.

    Args:
        model: The network, conditional or static, whole or for features.
        name: Name of the network.
        cfg: The result of `describe_weights`.
        start: State dict of its static base: the initial values of layers for other channels or classes.
        expert_spread: Difference between experts made from one kernel, as in `condconv.load_pretrained`.
        cache_dir: Directory of timm's downloads; `None` for its default.

    Raises:
        UsageError: The weights do not fit, or a file cannot be read.
    """
    source = "a state dict" if cfg.state_dict else cfg.file or cfg.hf_hub_id or cfg.url
    if cfg.file and not cfg.state_dict:  # read as all files here are, without running code of theirs
        state = require_extra("timm.models", "models").clean_state_dict(read_weights(model, cfg.file))
        cfg = dataclasses.replace(cfg, state_dict=state, file=None, source=None)
    require_extra("timm.models", "models").load_pretrained(
        _Target(model, name.family, start, expert_spread, source),
        cfg.to_dict(),
        num_classes=getattr(model, "num_classes", 0),
        in_chans=start[f"{name.family.stem}.weight"].shape[1],
        cache_dir=cache_dir,
    )


@dataclasses.dataclass(frozen=True)
class _Target:
    """A network for timm's `load_pretrained` whose weights `condconv.weights` loads, since it knows experts."""

    model: nn.Module
    family: Family
    start: Mapping[str, Tensor]
    expert_spread: float
    source: str

    def get_submodule(self, name: str) -> nn.Module:
        return self.model.get_submodule(name)

    def _part(self, name: str) -> str:
        """Return the block that a tensor belongs to, or else the child."""
        block = re.match(self.family.blocks, name)
        return name.partition(".")[0] if block is None else block[0]

    def _fits(self, layer: str, state: Mapping[str, Tensor]) -> bool:
        """Whether a source has a layer's kernel or fitting experts, whose name timm does not know and never drops."""
        if f"{layer}.weight" in state:
            return True
        theirs, ours = (each.get(f"{layer}.experts.weight") for each in (state, self.model.state_dict()))
        return theirs is not None and ours is not None and theirs.shape == ours.shape

    def load_state_dict(self, state: Mapping[str, Tensor], strict: bool) -> SimpleNamespace:
        """Load the weights that timm adapted; if not strict, timm dropped layers for other channels or classes."""
        layers = (self.family.stem, self.family.classifier)
        dropped = tuple(f"{layer}." for layer in layers if not strict and not self._fits(layer, state))
        kept = {name: tensor for name, tensor in state.items() if not name.startswith(dropped)}
        kept |= {name: tensor for name, tensor in self.start.items() if name.startswith(dropped)}
        if f"{self.family.classifier}.weight" not in self.start:  # for features: it ends earlier
            parts = {self._part(name) for name in self.start}
            kept = {name: tensor for name, tensor in kept.items() if self._part(name) in parts}
        load_state_dict(self.model, kept, expert_spread=self.expert_spread, source=self.source)
        return SimpleNamespace(missing_keys=[], unexpected_keys=[])
