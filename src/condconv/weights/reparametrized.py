"""Compute weights that a file has in parts as torch does: weight norm, spectral norm and pruning.

All forms in which torch saves them are known, for a parameter of any name:

- weight norm: `weight_g` and `weight_v`, or `parametrizations.weight.original0` and `.original1`;
- spectral norm: `weight_orig`, `weight_u` and `weight_v`, or `parametrizations.weight.original`, `.0._u` and `.0._v`;
- pruning: `weight_orig` and `weight_mask`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor
from torch.nn.functional import normalize

from condconv.weights.layers import ends

_NEW = re.compile(r"(?P<owner>(?:.+\.)?)parametrizations\.(?P<leaf>[^.]+)\.(?P<part>.+)")
_OLD = re.compile(r"(?P<owner>(?:.+\.)?)(?P<leaf>[^.]+)_(?P<part>g|v|u|orig|mask)")
_Parts = Mapping[str, Tensor]


def plain_weights(
    state: Mapping[str, Tensor], knows: Callable[[str], bool]
) -> tuple[dict[str, Tensor], dict[str, list[str]]]:
    """Compute the weights that a state dict has in parts.

    Args:
        state: Tensors by name.
        knows: Whether the network has a tensor of a name; then the parts themselves are loaded.

    Returns:
        The state dict, with each weight in the place of its first part and all else unchanged; and the names of the
        weights by how they were computed.

    Source:
        torch.nn.utils: weight_norm, spectral_norm, prune, parametrizations.
    """
    groups: dict[str, dict[str, str]] = {}
    for name in state:
        match = _NEW.fullmatch(name) or _OLD.fullmatch(name)
        if match is not None and not knows(name):
            groups.setdefault(match["owner"] + match["leaf"], {})[match["part"]] = name
    computed: dict[str, dict[str, Tensor]] = {}  # by the name of the first part
    used: set[str] = set()
    how: dict[str, list[str]] = {}
    for weight, names in groups.items():
        parts = {part: state[name] for part, name in names.items()}
        found = _compute(parts, state.get(weight))
        if found is not None:
            kind, value = found
            computed[next(iter(names.values()))] = {weight: value}
            used |= {*names.values(), weight}
            how.setdefault(kind, []).append(weight)
    plain: dict[str, Tensor] = {}
    for name, tensor in state.items():
        plain |= computed.get(name, {} if name in used else {name: tensor})
    return plain, how


def unknown_parametrizations(names: Iterable[str], missing: Iterable[str]) -> dict[str, list[str]]:
    """Return weights that a source has in unknown kinds of parts, with the parts.

    Args:
        names: Names of the source that the network lacks.
        missing: Names of the network that the source lacks.
    """
    groups: dict[str, list[str]] = {}
    lacking = {*missing}
    for name in names:
        new = _NEW.fullmatch(name)
        match = new or _OLD.fullmatch(name)
        weight = match["owner"] + match["leaf"] if match else ""
        if match and (new or lacking & {*ends(weight)}):
            groups.setdefault(weight, []).append(match["part"])
    return groups


def _compute(parts: _Parts, weight: Tensor | None) -> tuple[str, Tensor] | None:
    """Return a weight and how it is computed from its parts, or `None` if they are not known."""
    numbers = [part for name, part in parts.items() if name != "mask"]
    if not all(part.is_floating_point() and part.dtype == numbers[0].dtype for part in numbers):
        return None
    for kind, names, compute in _KINDS:
        if parts.keys() == {*names} and (value := compute(*(parts[name] for name in names))) is not None:
            # The oldest files of torch have the weight itself too, as it was when they were saved.
            return kind, value if weight is None or weight.shape != value.shape else weight
    return None


def _weight_norm(magnitude: Tensor, direction: Tensor) -> Tensor | None:
    """Scale each slice of a direction to its magnitude, along the dimension given by the magnitude's shape."""
    if magnitude.dim() == 0:  # one for the whole tensor
        return torch._weight_norm(direction, magnitude, -1)
    longer = [dim for dim, size in enumerate(magnitude.shape) if size != 1]
    single = [dim for dim, size in enumerate(direction.shape) if size == 1]
    dims = longer or single[:1]  # where a dimension has size 1, the norm is that of the whole, whichever it is
    if magnitude.dim() != direction.dim() or len(dims) != 1 or magnitude.shape[dims[0]] != direction.shape[dims[0]]:
        return None
    return torch._weight_norm(direction, magnitude, dims[0])


def _spectral_norm(weight: Tensor, left: Tensor, right: Tensor) -> Tensor | None:
    """Divide a weight by its largest singular value, computed from both vectors in the file.

    Rows are outputs, which are the second dimension of a transposed convolution. The vectors' lengths show which it is,
    or, if a kernel has as many inputs as outputs, the value that they give.
    """
    rows = [weight.movedim(dim, 0).flatten(1) for dim in range(min(2, weight.dim()))]
    vectors = left.dim() == right.dim() == 1
    fitting = [matrix for matrix in rows if vectors and matrix.shape == (len(left), len(right))]
    values = [torch.vdot(left, torch.mv(matrix, right)) for matrix in fitting]
    return weight / max(values, key=lambda value: float(value.detach().abs())) if values else None


def _spectral_norm_of_old(weight: Tensor, left: Tensor) -> Tensor | None:
    """Do what `_spectral_norm` does for files of older torch versions, which saved only one of the vectors."""
    rows = weight.flatten(1)
    if rows.dim() != 2 or left.shape != rows.shape[:1]:
        return None
    return _spectral_norm(weight, left, normalize(torch.mv(rows.mT, left), dim=0))


def _pruned(weight: Tensor, mask: Tensor) -> Tensor | None:
    return mask.to(weight.dtype) * weight if mask.shape == weight.shape else None


_KINDS: tuple[tuple[str, tuple[str, ...], Callable[..., Tensor | None]], ...] = (
    ("weight norm", ("g", "v"), _weight_norm),
    ("weight norm", ("original0", "original1"), _weight_norm),
    ("spectral norm", ("orig", "u", "v"), _spectral_norm),
    ("spectral norm", ("original", "0._u", "0._v"), _spectral_norm),
    ("spectral norm", ("orig", "u"), _spectral_norm_of_old),
    ("pruning", ("orig", "mask"), _pruned),
)
