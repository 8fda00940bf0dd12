import json
from dataclasses import asdict

import pytest
import torch
from torch import nn

import condconv
from condconv.cli.main import main
from condconv.export.formats import FORMATS
from condconv.lab.bench.cases import Trio
from condconv.lab.bench.report import runtime_record
from condconv.lab.bench.runtimes import RUNTIMES, RuntimeRow, line, measure_runtime
from condconv.lab.bench.timing import Spread


class Tiny:
    """A case of two layers, so that it is exported in a moment."""

    name = "tiny"

    def make(self, batch):
        def network(first):
            return nn.Sequential(first, nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()

        ours = network(condconv.CondConv2d(3, 8, 1, num_experts=4))
        return Trio(network(nn.Conv2d(3, 8, 1)), ours, None, (torch.randn(batch, 3, 8, 8),))


@pytest.mark.parametrize("runtime", ["torch-export", pytest.param("onnx", marks=pytest.mark.slow)])
def test_one_file_is_timed_at_every_batch_beside_its_twin(runtime):
    for package in FORMATS[runtime].PACKAGES:
        pytest.importorskip(package)
    rows = list(measure_runtime(Tiny(), runtime, (2, 1), repetitions=3))
    assert [(row.name, row.runtime, row.batch) for row in rows] == [("tiny", runtime, 2), ("tiny", runtime, 1)]
    for row in rows:
        assert 0 < row.ratio.low <= row.ratio.median <= row.ratio.high
        assert row.bytes[0] > row.bytes[1]  # four experts and a router against one kernel
    record = json.loads(json.dumps(runtime_record(rows, "condconv bench", 3)))
    assert record["rows"][0] == json.loads(json.dumps(asdict(rows[0])))
    assert {"torch", *FORMATS[runtime].PACKAGES} <= set(record["versions"])


def test_a_row_as_text():
    row = RuntimeRow("onnx", "net", 8, 12.345, Spread(1.5, 1.25, 1.75), (5_000_000, 1_000_000))
    assert line(row).split() == ["net", "8", "12.35", "ms", "1.50", "[1.25", "1.75]", "5.0", "MB", "1.0", "MB"]


def test_the_command_line_knows_the_runtimes():
    assert set(RUNTIMES) < set(FORMATS)


@pytest.mark.parametrize("option", [["--quick"], ["--call"], ["--layers", "1x1"], ["--impl", "native"], ["--compile"]])
def test_options_that_exported_files_do_not_have(capsys, option):
    assert main(["bench", "--runtime", "onnx", *option]) == 2
    assert f"`--runtime` must be given without {option[0]}, got both: exported networks" in capsys.readouterr().err
