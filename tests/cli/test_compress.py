import re

import pytest
import torch

from condconv.cli.main import main
from condconv.convert import compress_experts_
from condconv.lab.saved import Reading, load_checkpoint, load_trained
from condconv.lab.saved.reading import open_images
from condconv.nn import SharedExperts
from condconv.nn.conditional import conditional_layers
from tests.cli.test_report import fails, report


def compress(checkpoint, out, *more, data=None) -> int:
    arguments = [str(checkpoint), "-o", str(out), "--device", "cpu", "--quiet", *map(str, more)]
    return main(["compress", *arguments, *(("--data", str(data)) if data else ())])


def test_a_compressed_checkpoint_is_one_as_any_other(untrained, tmp_path, capsys):
    path, data = untrained
    out, static, file = (tmp_path / name for name in ("small.safetensors", "static.safetensors", "a.pt2"))
    chosen = ("--layers", "blocks.3.*", "--experts", "shared(outputs=8)", "--max-error", 9)
    assert compress(path, out, *chosen, data=data) == 0
    said = capsys.readouterr().out
    assert re.search(r"blocks\.3\.0\.conv_pw +shared\(outputs=8\) +[\d,]+ +[\d,]+ +\d\.\d{3}", said)
    assert re.search(r"parameters: [\d,]+ -> [\d,]+", said)
    assert re.search(r"top-1: \d+\.\d\d % -> \d+\.\d\d % \([+-]\d+\.\d\d points, 9 images\)", said)
    assert f"written: {out}" in said
    checkpoint, network = load_trained(out)
    layers = conditional_layers(network)
    assert {name for name, layer in layers.items() if isinstance(layer.experts, SharedExperts)} == set(
        checkpoint.stores
    )
    assert set(checkpoint.stores.values()) == {"shared(outputs=8)", "shared(kernels=2)"}
    assert out.stat().st_size < path.stat().st_size
    _, here = load_trained(path)
    images, _ = open_images(checkpoint, str(data / "train"))
    reading = Reading(progress=False)
    batches = list(reading.read(images, reading.choose(images), ""))
    compress_experts_(here, "shared(outputs=8)", data=batches, layers="blocks.3.*", max_error=9)
    x = torch.randn(2, 3, 16, 16)
    assert torch.allclose(network(x), here(x), atol=1e-3)
    assert main(["evaluate", str(out), "--data", str(data), "--device", "cpu", "--quiet"]) == 0
    assert report((out, data), tmp_path / "a.json") == 0
    again = ["make-static", out, "-o", static, "--layers", "blocks.3.0.conv_pw", "--no-evaluate", "--data", data]
    assert main([*map(str, again), "--device", "cpu", "--quiet"]) == 0
    assert load_checkpoint(static).stores == checkpoint.stores
    load_trained(static)
    assert main(["export", str(out), "--format", "torch-export", "-o", str(file)]) == 0
    rest = ("--layers", "blocks.4.*", "--max-error", 9, "--no-evaluate")
    assert compress(out, tmp_path / "more.safetensors", *rest, data=data) == 0
    more = load_checkpoint(tmp_path / "more.safetensors").stores
    assert checkpoint.stores.items() < more.items()


def test_a_repair(untrained, tmp_path, capsys):
    path, data = untrained
    options = ("--layers", "blocks.4.*", "--experts", "shared(outputs=4)", "--grouped", "none", "--max-error", 9)
    repair = ("--repair-epochs", 2, "--repair-lr", 0.01, "--no-evaluate")
    assert compress(path, tmp_path / "a.safetensors", *options, *repair, data=data) == 0
    said = capsys.readouterr().out
    assert re.search(r"repair, nats: \d\.\d{4}, \d\.\d{4}", said)
    assert "left as it was: blocks.4.0.conv_dw: it has groups: " in said
    assert "top-1" not in said


def test_what_is_refused(untrained, tmp_path, capsys):
    path, data = untrained
    start = ["compress", path, "--data", data, "-o", tmp_path / "a.safetensors", "--device", "cpu", "--quiet"]
    start += ["--layers", "blocks.3.*", "--no-evaluate"]
    assert "`max_error` must be at least the relative error of each layer's mixture, got 0.001 for " in fails(
        capsys, [*start, "--max-error", 0.001]
    )
    assert "`experts` must be of a kind that can be fitted, got 'dense'" in fails(
        capsys, [*start, "--experts", "dense"]
    )
    assert "`out` must be another file than the checkpoint" in fails(
        capsys, ["compress", path, "--data", data, "-o", path, "--force"]
    )
    assert not (tmp_path / "a.safetensors").exists()


@pytest.mark.slow
def test_images_without_classes(untrained, tmp_path, capsys):
    path, data = untrained
    options = ("--layers", "blocks.3.*", "--max-error", 9)
    assert compress(path, tmp_path / "a.safetensors", *options, data=data / "val" / "cat") == 0
    assert "top-1: not measured: the images have no classes" in capsys.readouterr().out
