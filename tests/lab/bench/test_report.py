import dataclasses
import json

import pytest
import torch

from condconv.cli.main import main
from condconv.errors import MissingExtraError
from condconv.lab.bench import report
from condconv.lab.bench.call import CallCost, measure_call
from condconv.lab.bench.cases import LAYERS, LayerCase, NetworkCase
from condconv.lab.bench.contender import Conditions
from condconv.lab.bench.run import Row
from condconv.lab.bench.targets import memory_target, time_target, verdict
from condconv.lab.bench.timing import Spread
from condconv.ops.native import library
from condconv.ops.rules import RULES
from scripts.make_performance import (
    PAGE,
    SELECTION,
    SELECTION_BF16,
    TIMINGS,
    not_timed,
    page,
    read,
    table,
    timings,
)

INFERENCE, TRAINING = Conditions("inference"), Conditions("training")
B0 = NetworkCase("tf_efficientnet_cc_b0_8e")
ROW = Row(
    kind="network",
    name=B0.name,
    batch=16,
    mode="training",
    dtype="fp32",
    device="cpu",
    compiled=False,
    bound=1.05,
    expert_bytes=85_000_000,
    parity="output differs from the reference by 1.0e-07, allowed 1.0e-06",
    layout={"static": "contiguous", "ours": "channels_last"},
    milliseconds={"static": 1000.0, "ours": 1250.0},
    ratio={"static": Spread(1.0, 1.0, 1.0), "ours": Spread(1.25, 1.2, 1.31)},
    peak_bytes={"static": 1_000_000_000, "ours": 1_150_000_000},
    target=1.2,
    verdict="miss",
    memory_target=187_000_000,
    memory_verdict="pass",
)
CALL = CallCost(5.0, 11.0, 2.2, 2.5, "pass", 8.0, 28.0)
REFUSED = dataclasses.replace(ROW, refused="output differs", milliseconds={}, ratio={}, peak_bytes={}, verdict=None)


@pytest.mark.parametrize(
    ("case", "batch", "conditions", "target"),
    [
        (LAYERS[1], 1, INFERENCE, 1.5),
        (LAYERS[1], 4, INFERENCE, None),
        (LAYERS[1], 8, INFERENCE, 1.25 * 57 / 49),
        (LAYERS[1], 8, TRAINING, None),
        (LAYERS[1], 8, Conditions(device="cuda"), None),
        (LayerCase(1, 192, 1152, 8), 8, INFERENCE, None),
        (NetworkCase("resnet_cc_50_8e"), 1, INFERENCE, 1.15),
        (NetworkCase("resnet_cc_50_8e"), 16, TRAINING, None),
        (B0, 16, TRAINING, 1.2),
        (B0, 8, TRAINING, None),
        (B0, 128, Conditions("inference", "bf16", "cuda"), 1 / 0.9),
        (B0, 128, Conditions("training", "bf16", "cuda"), 1 / 0.85),
        (B0, 128, Conditions("training", "fp32", "cuda"), None),
    ],
)
def test_targets(case, batch, conditions, target):
    assert time_target(case, batch, conditions) == target


def test_memory_is_aimed_at_in_training_of_networks():
    case = NetworkCase("mobilenet_v1_cc_050_8e")
    assert memory_target(case, TRAINING) == round(2.2 * case.expert_bytes)
    assert memory_target(case, INFERENCE) is None
    assert memory_target(LAYERS[0], TRAINING) is None


def test_verdicts():
    assert verdict(1.15, 1.15) == "pass"
    assert verdict(1.16, 1.15) == "miss"
    assert verdict(None, 1.15) is None
    assert verdict(1.0, None) is None


def test_a_line_says_pass_or_miss():
    cells = report.line(ROW).split("  ")
    assert [cell.strip() for cell in cells if cell.strip()] == [
        *("tf_efficientnet_cc_b0_8e", "16", "train fp32", "1000.000", "1.25 [1.20 1.31]", "-", "1.05", "1.20 miss"),
        *("1150.0 / 1000.0", "+187 pass"),
    ]
    assert report.line(REFUSED).endswith("train fp32  not timed: output differs")
    assert report.summary([ROW, REFUSED], CALL) == (
        "targets: 3 pass, 1 miss; 1 not timed: they differ from the reference"
    )  # the memory verdict of the refused row is that of ROW
    assert len(report.header()) == len(report.line(ROW).ljust(len(report.header())))


@pytest.fixture(autouse=True)
def _memory_of_the_test_process(monkeypatch):
    monkeypatch.setattr("condconv.lab.bench.timing.keep_freed_memory", lambda: True)


def test_the_kernels_are_named(monkeypatch):
    monkeypatch.setattr(library, "WHY_NOT", "no compiler")
    assert report.kernels_in_use(INFERENCE) == "native kernels not built: no compiler"
    monkeypatch.setattr(library, "WHY_NOT", None)
    monkeypatch.setattr(library, "instruction_set", lambda: "avx2")
    assert report.kernels_in_use(INFERENCE) == "native: avx2"
    assert "compute in fp32, not in bf16" in report.kernels_in_use(Conditions(dtype="bf16"))
    assert report.kernels_in_use(Conditions(device="cuda:0")) == "torch's operations on cuda:0"


def test_a_record_gives_its_rows_back():
    record = json.loads(json.dumps(report.record([ROW, REFUSED], CALL, "condconv bench", INFERENCE, 5, True)))
    kept = {"command", "machine", "versions", "kernels", "keeps_freed_memory", "repetitions", "call", "rows"}
    assert set(record) == kept
    assert CallCost(**record["call"]) == CALL
    assert set(record["machine"]) == {"processor", "architecture", "cores", "threads", "gpu"}
    assert record["versions"]["torch"] == torch.__version__
    assert [report.row_from_record(values) for values in record["rows"]] == [ROW, REFUSED]


@pytest.mark.parametrize("conditions", [INFERENCE, Conditions(dtype="bf16", impl="matmul")])
def test_a_call_is_timed_beside_torchs(conditions):
    call = measure_call(conditions, 1)
    assert call.layer_static is not None
    assert min(call.static, call.layer_static) > 0
    assert call.ratio == call.ours / call.static
    assert call.verdict == ("pass" if call.ratio <= 2.5 else "miss")


def test_a_call_in_words():
    said = "cond_conv2d takes 11.0 us, 2.20 times torch's 5.0 us; target 2.5: pass"
    assert str(dataclasses.replace(CALL, layer=None)) == said
    assert str(CALL) == f"{said}; CondConv2d with its routing takes 28.0 us, 3.50 times nn.Conv2d's 8.0 us"


def test_the_worse_layout_of_a_call_counts(monkeypatch):
    """In most rounds something else runs, and a call takes ten times as long."""
    given = iter([(4.0, 8.0), (4.0, 9.0)])

    def times(calls, repetitions, seconds, cuda):
        assert repetitions == 60
        static, ours = next(given)
        found = dict(zip(calls, (static, ours, 7.0, 21.0), strict=True))
        return {name: [low * 1e-6] * 10 + [low * 1e-5] * 50 for name, low in found.items()}

    monkeypatch.setattr("condconv.lab.bench.call.time_by_turns", times)
    call = measure_call(INFERENCE, 3)
    assert call.verdict == "pass"
    assert [call.ratio, call.layer_static, call.layer] == pytest.approx([2.25, 7.0, 21.0])


def test_the_command_writes_the_table_and_the_file(monkeypatch, capsys, tmp_path):
    layers = (LayerCase(3, 4, 4, 5, groups=4), LayerCase(1, 3, 5, 4))
    monkeypatch.setattr("condconv.lab.bench.tasks.LAYERS", layers)
    file = tmp_path / "rows.json"
    argv = ["bench", "--layers", "depthwise*", "--batch", "2", "3", "--mode", "inference", "--repetitions", "2"]
    assert main([*argv, "--dtype", "bf16", "-o", str(file)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].endswith("threads: 1; rows: 2")
    assert said[2].startswith("call overhead (a layer too small to take time): ")
    assert [line.split("  ")[0] for line in said[5:7]] == ["depthwise 3x3 4 @5"] * 2
    assert json.loads(file.read_text())["call"]["target"] == 2.5
    assert json.loads(file.read_text())["command"].startswith("condconv bench --layers 'depthwise*' --batch 2 3 ")
    assert json.loads(file.read_text())["keeps_freed_memory"] is True
    rows = json.loads(file.read_text())["rows"]
    assert [row["batch"] for row in rows] == [2, 3]
    assert {row["dtype"] for row in rows} == {"bf16"}
    assert set(rows[0]) == {field.name for field in dataclasses.fields(Row)}


def test_the_command_times_a_call_alone(capsys, tmp_path):
    file = tmp_path / "call.json"
    assert main(["bench", "--call", "--repetitions", "1", "-o", str(file)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].endswith("rows: 0")
    assert "; CondConv2d with its routing takes " in said[2]
    record = json.loads(file.read_text())
    assert record["rows"] == []
    assert CallCost(**record["call"]).layer is not None


def test_help(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["bench", "--help"])
    assert caught.value.code == 0
    said = capsys.readouterr().out
    assert "usage: condconv bench" in said
    assert "(default: None)" not in said


def test_a_network_without_timm_is_left_out(monkeypatch, capsys):
    def needing_timm(task, repetitions):
        raise MissingExtraError("timm is needed here")

    monkeypatch.setattr("condconv.lab.bench.run.measure_task", needing_timm)
    assert main(["bench", "--networks", "resnet*", "--batch", "1", "--mode", "inference"]) == 0
    assert "resnet_cc_50_8e: not measured: timm is needed here\n" in capsys.readouterr().out


def test_the_command_fails_where_something_is_wrong(monkeypatch, capsys):
    monkeypatch.setattr("condconv.lab.bench.run.measure_task", lambda task, repetitions: REFUSED)
    assert main(["bench", "--layers", "*192*", "--batch", "1", "--mode", "inference"]) == 1
    assert "not timed: output differs" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--repetitions", "0"], "`--repetitions` must be a whole number from 1 to 1,000,000, got 0"),
        (["--threads", "0"], "`--threads` must be a whole number from 1 to 4,096, got 0"),
        (["--batch", "8", "-1"], "`--batch` must be a whole number from 1 to 1,000,000, got -1"),
        (["--quick", "--batch", "8"], "`--quick` must be alone in choosing rows, got --batch too"),
        (["--quick", "--call"], "`--quick` must be alone in choosing rows, got --call too"),
        (["--call", "--layers", "*192*"], "`--call` must be alone in choosing rows, got --layers too"),
        (["--device", "tpu"], "`--device` must be cpu or cuda, got 'tpu'"),
        (["--mode", "fast"], "`--mode` must be one of inference, training, got 'fast'"),
        (["-o", "no/such/file.json"], "`out` must be in a directory that exists, got no/such/file.json"),
        (["--impl", "triton", "--layers", "*192*"], "`--impl` must be one that can run here, got 'triton' ("),
        (["--layers", "x9"], "`--layers` must match listed layers, got 'x9' for none"),
    ],
)
def test_wrong_options_are_refused(capsys, argv, message):
    assert main(["bench", *argv]) == 2
    assert message in capsys.readouterr().err


def test_the_page_shows_misses_and_what_was_not_timed():
    assert "| 1.20 **miss** | 1150.0 / 1000.0 MB, pass |" in table([ROW])
    assert not_timed([ROW, REFUSED]).count("- **") == 1
    assert "not timed; output differs." in not_timed([ROW, REFUSED])


def test_the_pages_are_made_from_their_sources():
    for path, made in ((PAGE, page()), (TIMINGS, timings())):
        assert path.read_text(encoding="utf-8") == made, "run python scripts/make_performance.py"


def test_every_measured_rule_is_one_of_auto():
    rows = [row for file in (*SELECTION, *SELECTION_BF16) for row in read(file)["rows"]]
    assert {row[name] for row in rows for name in ("rule", "otherwise")} <= {rule.where for rule in RULES}
