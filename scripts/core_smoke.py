"""Use the installed package with torch and numpy only.

`clean_install.py` runs it, in the environment that it made.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

OPTIONAL = (
    "accelerate",
    "matplotlib",
    "PIL",
    "safetensors",
    "scipy",
    "sklearn",
    "timm",
    "torchvision",
    "tqdm",
)


def expect(truth: bool, failure: str) -> None:
    """Stop when something does not hold.

    Args:
        truth: What should hold.
        failure: What to say when it does not.

    Raises:
        SystemExit: It does not hold.
    """
    if not truth:
        sys.exit(f"clean installation: {failure}")


def check_environment(folder: Path) -> None:
    """Check that the wheel's package is imported, and that nothing optional could be.

    Args:
        folder: Root of the clean environment.
    """
    import condconv

    package = Path(condconv.__file__).resolve().parent
    expect(package.is_relative_to(folder.resolve()), f"condconv must come from {folder}, got {package}")
    expect((package / "py.typed").is_file(), "py.typed is not in the wheel")
    present = [name for name in OPTIONAL if importlib.util.find_spec(name) is not None]
    expect(not present, f"optional modules must not be importable here, got {present}")


def check_library() -> None:
    """Use a layer, convert a network, and count it."""
    import torch
    from torch import nn

    import condconv

    layer = condconv.CondConv2d(4, 6, 3, padding=1, num_experts=3)
    layer(torch.randn(2, 4, 5, 5)).sum().backward()
    expect(layer.experts.weight.grad is not None, "no gradient reached the experts")

    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3)).eval()
    images = torch.randn(2, 3, 8, 8)
    before = model(images)
    report = condconv.convert_(model, num_experts=2)
    expect(torch.allclose(model(images), before, atol=1e-5), "conversion changed the output")
    expect(bool(str(report)), "the report prints nothing")
    expect(condconv.count(model, images).total.params > 0, "nothing was counted")
    expect("mobilenet_v1_050" in condconv.list_models(), "the networks have no names")


def check_command(folder: Path) -> None:
    """Check the console command: it lists the networks, and what the core cannot do names the extra.

    Args:
        folder: Root of the clean environment.
    """
    command = next(folder.glob("[bS]*/condconv*"))
    done = subprocess.run([command, "models"], capture_output=True, text=True)
    expect("mobilenet_v1_050" in done.stdout, f"`condconv models` must list the networks, got {done.stderr}")
    done = subprocess.run([command, "demo"], capture_output=True, text=True)
    expect(done.returncode == 2, f"`condconv demo` must exit with 2, got {done.returncode}: {done.stderr}")
    expect("condconv[train]" in done.stderr, f"the error must name the extra train, got {done.stderr}")
    expect("Traceback" not in done.stderr, f"the error must come without a traceback, got {done.stderr}")


if __name__ == "__main__":
    check_environment(Path(sys.argv[1]))
    check_library()
    check_command(Path(sys.argv[1]))
    print("clean installation: the core works with torch and numpy only")
