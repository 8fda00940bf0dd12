"""The examples load files where this package is not, and say the class that the network does."""

import importlib.util
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from condconv.export import FORMATS, export
from tests.export.cases import small_network

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "export"
FACTS = {"size": 12, "channels": 3, "crop": 0.8, "interpolation": "bicubic", "mean": [0.5, 0.4, 0.3], "std": [0.25] * 3}
NAMES = ["cat", "dog", "eel", "größe"]
# Hides the package from the example, which is run as it stands.
ALONE = "import runpy, sys; sys.modules['condconv'] = None; del sys.argv[0]; sys.path.insert(0, {folder!r}); "


def save_picture(path: Path) -> None:
    """Save a picture of 30 x 21 pixels."""
    pixels = np.random.default_rng(0).integers(0, 256, (21, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def prepare(path: Path) -> torch.Tensor:
    """Return what the example's `prepare` makes of a picture."""
    spec = importlib.util.spec_from_file_location("picture", EXAMPLES / "picture.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return torch.from_numpy(module.prepare(path, FACTS))


def say(script: str, *arguments: Path) -> str:
    """Run an example where this package is not; return what it says."""
    code = ALONE.format(folder=str(EXAMPLES)) + f"runpy.run_path({str(EXAMPLES / script)!r}, run_name='__main__')"
    command = [sys.executable, "-X", "utf8", "-c", code, script, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "format",
    [
        "onnx",
        "executorch",
        "litert",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("torch-export", "aoti", "openvino")),
    ],
)
def test_an_example_says_the_class(tmp_path, format):
    for package in FORMATS[format].PACKAGES:
        pytest.importorskip(package)
    network, _ = small_network()
    path, image = tmp_path / f"n{FORMATS[format].SUFFIX}", tmp_path / "picture.png"
    save_picture(image)
    options: dict[str, Any] = {"executorch": {"max_batch": 4}, "litert": {"dynamic_batch": False}}.get(format, {})
    options |= {"class_names": NAMES, "preprocessing": FACTS, "verify": False}
    export(network, path, format=format, example_input=torch.zeros(1, 3, 12, 12), **options)
    arguments = [path, image]
    if format == "litert":  # its files hold no facts
        arguments.append(tmp_path / "facts.json")
        arguments[-1].write_text(json.dumps({"class_names": NAMES, "preprocessing": FACTS}), encoding="utf-8")
    said = say(f"run_{format.replace('-', '_')}.py", *arguments)
    assert said.splitlines()[-1] == NAMES[int(network(prepare(image)).argmax())]


def test_pictures_are_prepared_as_in_evaluation(tmp_path):
    transforms = pytest.importorskip("torchvision.transforms")
    save_picture(tmp_path / "picture.png")
    steps = [
        transforms.Resize(15, transforms.InterpolationMode.BICUBIC),  # 12 / 0.8
        transforms.CenterCrop(12),
        transforms.ToTensor(),
        transforms.Normalize(FACTS["mean"], FACTS["std"]),
    ]
    expected = transforms.Compose(steps)(Image.open(tmp_path / "picture.png"))[None]
    torch.testing.assert_close(prepare(tmp_path / "picture.png"), expected)


def weight_scales(path: Path) -> list[int]:
    """Return how many scales each weight of an int8 file has."""
    graph = pytest.importorskip("onnx").load(path).graph
    stored = {each.name: each for each in graph.initializer}
    widened = [node.input for node in graph.node if node.op_type == "DequantizeLinear" and node.input[0] in stored]
    return [math.prod(stored[scale].dims) for weight, scale, *_ in widened if len(stored[weight].dims) > 1]


@pytest.mark.slow
def test_int8_with_onnx_runtimes_own_tool(tmp_path):
    """Against a static control: what int8 costs a network with experts is of the size that it costs one without."""
    runtime = pytest.importorskip("onnxruntime")
    (tmp_path / "pictures").mkdir()
    for number in range(4):
        save_picture(tmp_path / "pictures" / f"{number}.png")
    x = prepare(tmp_path / "pictures" / "0.png")
    errors = {}
    torch.manual_seed(0)
    static = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 1), torch.nn.Flatten()
    )
    for name, network in (("experts", small_network()[0]), ("static", static.eval())):
        source, target = tmp_path / f"{name}.onnx", tmp_path / f"{name}-int8.onnx"
        export(network, source, format="onnx", example_input=x, preprocessing=FACTS, verify=False)
        say("quantize_static.py", source, target, tmp_path / "pictures")
        assert max(weight_scales(target)) >= 8  # one a channel: with one a weight, trained networks lose nearly all
        exact = network(x).detach()
        found = torch.from_numpy(runtime.InferenceSession(target).run(None, {"image": x.numpy()})[0])
        errors[name] = float((found - exact).norm() / exact.norm())
    assert 1e-5 < errors["static"] < 0.1
    assert 1e-5 < errors["experts"] < 0.1
