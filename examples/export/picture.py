"""From a picture to what a network takes, by the `preprocessing` that an exported file carries."""

import numpy as np
from PIL import Image


def prepare(path: str, facts: dict) -> np.ndarray:
    """Return `[1, C, S, S]`, float32: the shorter side scaled, the middle cut out, values normalised."""
    image = Image.open(path).convert("RGB" if facts["channels"] == 3 else "L")
    size = facts["size"]
    scale = int(size / facts["crop"]) / min(image.size)
    scaled = tuple(int(side * scale) if side != min(image.size) else int(size / facts["crop"]) for side in image.size)
    image = image.resize(scaled, Image.Resampling[facts["interpolation"].upper()])
    left, top = (round((side - size) / 2) for side in image.size)
    pixels = np.asarray(image.crop((left, top, left + size, top + size)), np.float32).reshape(size, size, -1) / 255
    pixels = (pixels - np.float32(facts["mean"])) / np.float32(facts["std"])
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])
