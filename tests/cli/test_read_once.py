"""A command reads its checkpoint once, header and tensors: files may be large, and on a slow disk."""

from collections import Counter

import pytest
import safetensors

from condconv.cli.main import main
from condconv.files.checkpoint_format import StoredCheckpoint, file


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("evaluate", ("--device", "cpu", "--quiet")),
        ("report", ("--device", "cpu", "--quiet", "--layer-images", "2", "-o", "a.json")),
        ("make-static", ("--device", "cpu", "--quiet", "--layers", "classifier", "-o", "a.safetensors")),
        ("export", ("--format", "torch-export", "-o", "a.pt2")),
    ],
)
def test_a_command_reads_its_checkpoint_once(untrained, tmp_path, monkeypatch, command, options):
    monkeypatch.chdir(tmp_path)
    seen: Counter[str] = Counter()

    def counted(what, function):
        def call(*arguments, **keywords):
            seen[what] += 1
            return function(*arguments, **keywords)

        return call

    monkeypatch.setattr(file, "_read_table", counted("header", file._read_table))
    monkeypatch.setattr(StoredCheckpoint, "read", counted("tensors", StoredCheckpoint.read))
    monkeypatch.setattr(safetensors, "safe_open", counted("opened", safetensors.safe_open))
    assert main([command, str(untrained[0]), *options]) == 0
    assert seen == {"header": 1, "tensors": 1, "opened": 2}  # opened for the one and for the other
