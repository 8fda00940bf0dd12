"""A command reads its checkpoint once, header and tensors, and compares it with its network once."""

from collections import Counter

import pytest
import safetensors

from condconv.cli.main import main
from condconv.files.checkpoint_format import StoredCheckpoint, file
from condconv.lab.saved import load_checkpoint, load_network, network


def counter():
    """Return what was called how often, and a function that makes another one count its calls."""
    seen: Counter[str] = Counter()

    def counted(what, function):
        def call(*arguments, **keywords):
            seen[what] += 1
            return function(*arguments, **keywords)

        return call

    return seen, counted


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("evaluate", ("--device", "cpu", "--quiet")),
        ("report", ("--device", "cpu", "--quiet", "--layer-images", "2", "-o", "a.json")),
        ("make-static", ("--device", "cpu", "--quiet", "--layers", "classifier", "-o", "a.safetensors")),
        (
            "compress",
            ("--device", "cpu", "--quiet", "--layers", "blocks.3.*", "--max-error", "9", "-o", "a.safetensors"),
        ),
        ("export", ("--format", "torch-export", "-o", "a.pt2")),
    ],
)
def test_a_command_reads_its_checkpoint_once(untrained, tmp_path, monkeypatch, command, options):
    monkeypatch.chdir(tmp_path)
    seen, counted = counter()
    monkeypatch.setattr(file, "_read_table", counted("header", file._read_table))
    monkeypatch.setattr(StoredCheckpoint, "read", counted("tensors", StoredCheckpoint.read))
    monkeypatch.setattr(safetensors, "safe_open", counted("opened", safetensors.safe_open))
    monkeypatch.setattr(network, "check_shapes", counted("compared", network.check_shapes))
    data = () if command == "export" else ("--data", str(untrained[1]))
    assert main([command, str(untrained[0]), *data, *options]) == 0
    assert seen == {"header": 1, "tensors": 1, "opened": 2, "compared": 1}  # opened for header and for tensors


def test_a_loaded_checkpoint_is_compared_once(untrained, monkeypatch):
    seen, counted = counter()
    monkeypatch.setattr(network, "check_shapes", counted("compared", network.check_shapes))
    load_network(load_checkpoint(untrained[0]), untrained[0])
    assert seen == {"compared": 1}
