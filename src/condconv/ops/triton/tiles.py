"""How much a program of each kernel takes at a time.

By arithmetic from the sizes of a call, not by timing while it runs: results are then the same in every process, and no
call takes longer than the next. Not confirmed by measurement yet.
"""

from __future__ import annotations

from typing import NamedTuple

from condconv.ops.triton.limits import INTERPRETED

# On the GPU a smaller tile only wastes lanes; under the interpreter small sizes must still fill several tiles.
_LEAST = 16  # of each side of a product on the tensor cores
_SHARED_BYTES = 64 * 1024  # consumer GPUs have 99 KB of shared memory a program
_ACCUMULATORS = 8192  # numbers in fp32 that 8 warps keep with 32 registers each
_PROGRAMS = 512  # about four for each multiprocessor of a large GPU
_MIXED_BYTES = 32 * 1024 * 1024  # half of the second cache of a large GPU, about all of a smaller one
# More pixels are more than one tile, and each tile would mix the kernel again: with E = 8 that takes the ordinary units
# as long as 64 to 128 pixels take the tensor cores.
_FUSED_PIXELS = 128


class Tile(NamedTuple):
    """Of the convolution: a product of `rows` x `depth` by `depth` x `pixels`, for each of `examples`."""

    examples: int
    rows: int
    depth: int
    pixels: int
    num_warps: int
    num_stages: int


class GradientTile(NamedTuple):
    """Of the experts' gradient: a product of `rows` x `pixels` by `pixels` x `depth`, spread over all experts."""

    rows: int
    depth: int
    pixels: int
    num_warps: int
    num_stages: int


def power_of_two(number: int) -> int:
    """Return the least power of two that is not less than a positive number."""
    return 1 << (number - 1).bit_length()


def mixes_inside(pixels: int, batch: int) -> bool:
    """Return whether the convolution mixes kernels as it uses them, for this many target pixels per example.

    Otherwise kernels are mixed before, a few examples at a time. A single example gains nothing from
    that: its kernel would be written and read again.
    """
    return pixels <= _FUSED_PIXELS or batch == 1


def mixed_examples(kernel_bytes: int) -> int:
    """Return for how many examples kernels are mixed at a time, so that they are read while still in the cache."""
    return max(1, _MIXED_BYTES // kernel_bytes)


def convolution(batch: int, pixels: int, experts: int, number_bytes: int, *, mixed: bool) -> Tile:
    """Return the tile for kernels mixed inside from `experts`, or before.

    1. Mixed before: wide tiles of one example.
    2. One example: short tiles, or there would be too few programs to read the experts.
    3. Several: four share the tiles of the experts, which are most of what is read. An example is a warp's.
    All load ahead as far as shared memory goes.
    """
    if INTERPRETED:
        return Tile(1 if mixed or batch == 1 else 2, _LEAST, _LEAST, _LEAST, 4, 1)
    side = power_of_two(max(pixels, _LEAST))
    if mixed:
        return Tile(1, 64, 32, min(side, 128), 4, 3)
    examples, rows, depth, side = (1, 16, 64, min(side, 128)) if batch == 1 else (4, 32, 32, min(side, 64))
    ahead = 2 * number_bytes * depth * (examples * side + experts * rows)
    return Tile(examples, rows, depth, side, 4, 2 if ahead <= _SHARED_BYTES else 1)


def dense_gradient(pixels: int, experts: int) -> GradientTile:
    """Return the tile; its sides follow from the accumulators, one for each expert."""
    side = min(power_of_two(max(pixels, _LEAST)), 64)
    if INTERPRETED:
        return GradientTile(_LEAST, _LEAST, _LEAST, 4, 1)
    width = 32 if power_of_two(experts) * 32 * 32 <= _ACCUMULATORS else _LEAST
    return GradientTile(width, width, side, 8, 2)


def depthwise(pixels: int) -> tuple[int, int, int]:
    """Return channels, pixels and warps: pixels in plenty, because each thread mixes the kernels of its channels."""
    if INTERPRETED:
        return 4, _LEAST, 4
    return 32, min(power_of_two(max(pixels, _LEAST)), 128), 4


def depthwise_gradient(taps: int, experts: int) -> tuple[int, int, int]:
    """Return channels, pixels and warps; channels follow from the accumulators, one for each expert and tap."""
    if INTERPRETED:
        return 4, 8, 4
    return max(1, min(32, _ACCUMULATORS // power_of_two(taps) // power_of_two(experts))), 4, 8


def parts(tiles: int, batch: int) -> int:
    """Return into how many parts the batch is cut, so that there are programs enough for tiles that are few."""
    return min(batch, 2 if INTERPRETED else -(-_PROGRAMS // tiles))
