"""Where the files of training scripts keep weights: a walk through mappings in mappings, by the usual names."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor

from condconv.errors import UsageError
from condconv.weights.averages import AVERAGED, Entry, Found, told_apart, words

PLAIN = (
    *("state_dict", "model", "model_state_dict", "model_state", "net", "network", "net_state_dict", "weights"),
    *("params", "student", "module", "generator"),
)
_DEEPEST = 12
_MOST_VISITS = 10_000


def find_weights(loaded: Any, has: Callable[[str], bool]) -> Found:
    """Return the weights inside what a file holds.

    Args:
        loaded: A mapping, or mappings in mappings; all other entries are ignored.
        has: Whether names of the network's tensors end in a name; such names are not taken for an average's.

    Raises:
        UsageError: There are more mappings than any file of weights has, or they contain themselves.
    """
    return _Search(has).find(loaded, "")


def holders(loaded: Any) -> list[str]:
    """Return the keys of an object under which it has tensors by name."""
    if not isinstance(loaded, Mapping):
        return []
    return [
        key for key, value in loaded.items() if isinstance(key, str) and isinstance(value, Mapping) and _tensors(value)
    ]


class _Search:
    """A walk through mappings in mappings.

    Args:
        has: As in `find_weights`.
    """

    def __init__(self, has: Callable[[str], bool]) -> None:
        self._has = has
        self._visits = 0

    def find(self, loaded: Any, path: str, depth: int = 0) -> Found:
        """Return the weights inside the mapping at a path."""
        if not isinstance(loaded, Mapping):
            return Found()
        self._visits += 1
        if depth > _DEEPEST or self._visits > _MOST_VISITS:
            raise UsageError(
                f"`path` must hold mappings in mappings {_DEEPEST} deep at most, got more: save model.state_dict()"
            )
        if (swapped := _swapped(loaded)) is not None:
            averaged, plain = (self._inside(loaded[key], f"{path}{key}.", depth) for key in swapped)
            return Found(plain, averaged)
        averages = list(self._averages(loaded, path, depth))
        plains = []
        found = [self.find(loaded.get(key), f"{path}{key}.", depth + 1) for key in PLAIN]
        if not any(each.plain for each in found) and (tensors := _tensors(loaded)):
            found.append(told_apart(tensors, path, self._has))
        averages += [each.averaged for each in found if each.averaged]
        plains += [each.plain for each in found if each.plain]
        if not plains and not averages:
            inner = [(key, value) for key, value in loaded.items() if isinstance(key, str) and key not in PLAIN]
            others = [each for key, value in inner if (each := self.find(value, f"{path}{key}.", depth + 1)) != Found()]
            return others[0] if len(others) == 1 else Found()
        names = tuple(each.name for each in averages[1:])
        return Found(next(iter(plains), None), next(iter(averages), None), names)

    def _inside(self, value: Any, path: str, depth: int) -> Entry | None:
        """Return the weights of an entry with one of the usual names."""
        found = self.find(value, path, depth + 1)
        return found.plain or found.averaged

    def _averages(self, loaded: Mapping[Any, Any], path: str, depth: int) -> Iterator[Entry]:
        """Yield the entries whose names are an average's, also among the states of callbacks."""
        for key, value in loaded.items():
            if not isinstance(value, Mapping):
                continue
            if key == "callbacks":
                for callback, state in value.items():
                    found = self.find(state, f"{path}{key}.{callback}.", depth + 2)
                    entry = found.averaged or (found.plain if words(str(callback)) & AVERAGED else None)
                    if entry is not None:
                        yield entry
            elif words(str(key)) & AVERAGED:
                entry = self._inside(value, f"{path}{key}.", depth)
                if entry is not None and any(tensor.dim() for tensor in entry.tensors.values()):  # no mere counter
                    yield entry


def _swapped(loaded: Mapping[Any, Any]) -> tuple[str, str] | None:
    """Return the keys of averaged and of plain weights in files that have the averaged ones under the usual name."""
    if {"state_dict", "current_model_state", "averaging_state"} <= loaded.keys():  # Lightning's WeightAveraging
        return "state_dict", "current_model_state"
    backup = loaded.get("ema_state_dict")
    if "state_dict" in loaded and isinstance(backup, Mapping) and "steps" in backup:  # OpenMMLab's EMAHook
        return "state_dict", "ema_state_dict"
    return None


def _tensors(loaded: Mapping[Any, Any]) -> dict[str, Tensor]:
    return {str(name): value for name, value in loaded.items() if isinstance(value, Tensor)}
