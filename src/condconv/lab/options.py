"""The options of a network and of a dataset's reader that are allowed, on the command line and in a checkpoint.

Both are passed on to other packages, some of whose arguments run code, fetch files or name a place of weights.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from condconv.files.schema import is_finite_number
from condconv.lab.rules import Rule

_MOST, _MOST_TEXT, _MOST_LIST, _LARGEST = 64, 200, 64, 1e12  # of options; none needs as many, as long or as large
# The data or other settings decide these, or they name a place or a function.
_NOT_OPTIONS = re.compile(r"num_classes|in_chans|features_only|pretrained.*|.*_(cfg|dir|file|filter|filter_fn|fn|path)")
# By these timm repeats blocks, and each takes time when a network is built, even where it takes no memory.
_MOST_DEPTH, _MOST_BLOCKS = 16, 1_000  # of depth_multiplier, and of all that `layers` lists for the stages of a ResNet
_TAG = re.compile(r"[A-Za-z0-9_.-]*")
_OF_READERS = ("input_key", "target_key", "train_split", "val_split", "small")


def _are_of_a_network(options: Any) -> bool:
    few = isinstance(options, Mapping) and len(options) <= _MOST
    return few and all(_is_of_a_network(name, value) for name, value in options.items())


def _not_of_a_network(options: Any) -> Any:
    """Return those options that are not allowed, or all if it is not each on its own."""
    if not isinstance(options, Mapping):
        return options
    return {name: value for name, value in options.items() if not _is_of_a_network(name, value)} or options


def _is_of_a_network(name: Any, value: Any) -> bool:
    if not isinstance(name, str) or not name.isidentifier() or len(name) > _MOST_TEXT:
        return False
    if name == "pretrained_cfg":  # a tag chooses among timm's own weights; a mapping could name any file or address
        return isinstance(value, str) and _is_plain(value) and _TAG.fullmatch(value) is not None
    if name == "depth_multiplier" and not (is_finite_number(value) and value <= _MOST_DEPTH):
        return False
    several = value if isinstance(value, (list, tuple)) else [value]
    if name == "layers" and sum(max(each, 0) for each in several if isinstance(each, (int, float))) > _MOST_BLOCKS:
        return False
    return _NOT_OPTIONS.fullmatch(name) is None and len(several) <= _MOST_LIST and all(map(_is_plain, several))


def _is_plain(value: Any) -> bool:
    """Return whether a value is None, True, False, a finite number or a short text."""
    if isinstance(value, str):
        return len(value) <= _MOST_TEXT
    return value is None or isinstance(value, bool) or (is_finite_number(value) and abs(value) <= _LARGEST)


def _are_of_a_reader(options: Any) -> bool:
    known = isinstance(options, Mapping) and set(options) <= set(_OF_READERS)
    return known and all(isinstance(each, (str, bool)) and _is_plain(each) for each in options.values())


MODEL_OPTIONS = Rule(
    _are_of_a_network,
    "a mapping of names to numbers, texts, True, False, None or short lists of these, without a place of weights, a "
    f"depth_multiplier of at most {_MOST_DEPTH}, and layers of at most {_MOST_BLOCKS:,} in sum",
    "for weights use --pretrained (with pretrained_cfg=TAG to choose among timm's) or --init-from FILE",
    wrong=_not_of_a_network,
)
DATA_OPTIONS = Rule(
    _are_of_a_reader,
    f"a mapping of some of {', '.join(_OF_READERS)} to texts, True or False",
    "leave out any others: they could run or fetch something",
)
