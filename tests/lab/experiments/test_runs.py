import json
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from matplotlib.axes import Axes
from torch import nn

from condconv.errors import TrainingInterrupted, UsageError
from condconv.lab.config import TrainConfig
from condconv.lab.data.images import IGNORED
from condconv.lab.experiments.design import Arm, Experiment
from condconv.lab.experiments.runner import Outcome, _shares, list_runs, run_all
from condconv.lab.experiments.runs import RunRecord, _Average, execute
from condconv.lab.experiments.tables import plot, read, summarise, table, write_tables
from condconv.lab.saved import Reading, load_checkpoint
from condconv.lab.saved.evaluate import evaluate_images
from condconv.models import create_model

SETTINGS = TrainConfig(
    data="digits", model="-", out="-", epochs=2, batch_size=64, lr=0.02, optimizer="sgd", device="cpu"
)
ARMS = (
    Arm("plain", "mobilenet_v1_025", paper=50.0),
    Arm("2 experts", "mobilenet_v1_cc_025_2e", paper=53.5),
)
EXPERIMENT = Experiment("pair", "A pair", "Table 0", ARMS, note="A note.")


def _record(run, score, seconds=60.0):
    return RunRecord(
        experiment=run.experiment.name,
        label=run.arm.label,
        seed=run.seed,
        settings=run.fingerprint(),
        params=2_000_000,
        madds=3_000_000,
        score=score,
        member_scores=(score,),
        curve=((score,),),
        loss_curve=((2.0, 1.25),),
        images_trained=10,
        seconds=seconds,
        machine={},
    )


def _save(run, score=0.5):
    run.path.parent.mkdir(parents=True, exist_ok=True)
    run.path.write_text(json.dumps(asdict(_record(run, score))))


def _saving(run, score):
    """Return a command that leaves a record, as a process that trains would."""
    text = json.dumps(asdict(_record(run, score)))
    return [sys.executable, "-c", f"import pathlib; pathlib.Path({str(run.path)!r}).write_text({text!r})"]


def test_runs_come_seed_by_seed(tmp_path):
    names = [run.name for run in list_runs(EXPERIMENT, SETTINGS, tmp_path, seeds=2)]
    assert names == ["plain/0", "2 experts/0", "plain/1", "2 experts/1"]
    with pytest.raises(UsageError, match="`seeds` must be a whole number from 1 to 1,000, got 0"):
        list_runs(EXPERIMENT, SETTINGS, tmp_path, seeds=0)


def test_a_training_is_shared_by_experiments_and_not_by_settings(tmp_path):
    other = Experiment("other", "", "", (replace(ARMS[0], label="base"),))
    (ours,) = list_runs(EXPERIMENT, SETTINGS, tmp_path, 1)[0].configs()
    (theirs,) = list_runs(other, SETTINGS, tmp_path, 1)[0].configs()
    (longer,) = list_runs(other, replace(SETTINGS, epochs=3), tmp_path, 1)[0].configs()
    assert ours == theirs
    assert longer.out != ours.out


def test_members_have_seeds_of_their_own_and_the_first_is_the_run_s(tmp_path):
    arm = Arm("three", "mobilenet_v1_025", members=3)
    runs = list_runs(Experiment("e", "", "", (arm,)), SETTINGS, tmp_path, 3)
    seeds = [config.seed for run in runs for config in run.configs()]
    assert seeds == [0, 1000, 2000, 1, 1001, 2001, 2, 1002, 2002]


def test_snapshots_share_the_epochs_of_one_run_and_follow_one_another(tmp_path):
    arm = Arm("three", "mobilenet_v1_025", members=3, chained=True)
    run = list_runs(Experiment("e", "", "", (arm,)), replace(SETTINGS, epochs=8), tmp_path, 1)[0]
    configs = run.configs()
    assert [config.epochs for config in configs] == [3, 3, 2]  # 8 in all
    assert [config.init_from for config in configs] == [
        None,
        f"{configs[0].out}/last.safetensors",
        f"{configs[1].out}/last.safetensors",
    ]
    short = list_runs(Experiment("e", "", "", (arm,)), SETTINGS, tmp_path, 1)[0]
    with pytest.raises(UsageError, match="`epochs` must be at least 3 for 'three', got 2"):
        execute(short)
    with pytest.raises(UsageError, match="`epochs` must be at least 3 for 'three', got 2"):  # before any is trained
        run_all([short], lambda run: [], progress=False)


def test_a_record_counts_for_its_own_settings_and_data_wherever_it_runs(tmp_path):
    run = list_runs(EXPERIMENT, SETTINGS, tmp_path, 1)[0]
    assert run.record() is None
    _save(run)
    assert run.record() is not None
    assert replace(run, settings=replace(SETTINGS, device="cpu", workers=3)).record() is not None
    for changes in ({"data": "/elsewhere/digits"}, {"val_data": "digits"}, {"data_dir": "/x"}, {"lr": 0.1}):
        assert replace(run, settings=replace(SETTINGS, **changes)).record() is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": "2 experts"}, "`label` must be one of 'plain', got '2 experts'"),
        ({"seed": 1}, "`seed` must be one of 0, got 1"),
        ({"experiment": "other"}, "`experiment` must be one of 'pair', got 'other'"),
        ({"settings": "{}"}, "`settings` must be one of '"),
        ({"score": 5.0}, "`score` must be a number from 0 to 1, got 5.0"),
        ({"curve": [[0.5, -1.0]]}, "`score` must be a number from 0 to 1, got -1.0"),
        ({"madds": 0}, "`madds` must be a whole number from 1 to"),
        ({"seconds": -1.0}, "`seconds` must be a number of at least 0, got -1.0"),
    ],
)
def test_a_record_of_another_run_is_not_taken_for_this_ones(tmp_path, changes, message):
    run = list_runs(EXPERIMENT, SETTINGS, tmp_path, 1)[0]
    _save(run)
    run.path.write_text(json.dumps(asdict(_record(run, 0.5)) | changes))
    with pytest.raises(UsageError, match="`out` must hold records of this version, got .*: remove it") as caught:
        run.record()
    assert message in str(caught.value)


def test_data_of_one_name_in_two_places_is_other_data(tmp_path):
    places = ("/flowers/train.tar", "/pets/train.tar", "torch/cifar10", "hfds/cifar10", "cifar10")
    runs = [list_runs(EXPERIMENT, replace(SETTINGS, data=each), tmp_path, 1)[0] for each in places]
    assert len({run.path for run in runs}) == len({run.configs()[0].out for run in runs}) == len(places)


def test_a_finished_run_is_not_done_again(tmp_path):
    run = list_runs(EXPERIMENT, SETTINGS, tmp_path, 1)[0]
    _save(run, 0.25)
    assert execute(run).score == 0.25
    assert not (tmp_path / "trained").exists()


def test_snapshots_go_on_from_one_another_whatever_the_first_started_from(tmp_path):
    arm = Arm("two", "mobilenet_v1_025", members=2, chained=True)
    settings = replace(SETTINGS, epochs=8, warmup_epochs=5, init_from="w.safetensors", init_skip="classifier*")
    first, second = list_runs(Experiment("e", "", "", (arm,)), settings, tmp_path, 1)[0].configs()
    assert (first.init_from, first.init_skip, first.warmup_epochs) == ("w.safetensors", "classifier*", 3)
    assert (second.init_from, second.init_skip, second.warmup_epochs) == (f"{first.out}/last.safetensors", None, 0)
    published = replace(SETTINGS, epochs=8, pretrained=True)
    first, second = list_runs(Experiment("e", "", "", (arm,)), published, tmp_path, 1)[0].configs()
    assert (first.pretrained, second.pretrained) == (True, False)


def test_weights_that_have_changed_are_trained_from_anew(tmp_path):
    weights = tmp_path / "w.safetensors"
    settings = replace(SETTINGS, init_from=str(weights))
    places = set()
    for content in (b"1", b"2"):
        weights.write_bytes(content)
        places.add(list_runs(EXPERIMENT, settings, tmp_path, 1)[0].configs()[0].out)
    assert len(places) == 2


def test_a_record_names_no_directory_of_its_machine(tmp_path):
    arm = Arm("two", "mobilenet_v1_025", members=2, chained=True)
    assert str(tmp_path) not in list_runs(Experiment("e", "", "", (arm,)), SETTINGS, tmp_path, 1)[0].fingerprint()


def test_runs_at_once_share_out_cores_and_gpus(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(8)), raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    assert _shares(3) == [{"OMP_NUM_THREADS": "2", "CUDA_VISIBLE_DEVICES": gpu} for gpu in ("4", "6", "4")]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4")
    assert _shares(1) == [{}]
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert _shares(2) == [{}, {}]


def test_a_run_is_told_its_share(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "condconv.lab.experiments.runner._shares", lambda jobs: [{"SHARE": str(each)} for each in range(jobs)]
    )
    runs = list_runs(EXPERIMENT, SETTINGS, tmp_path, 1)
    # Each waits for the other one's file, so that both are at work.
    script = (
        "import os, pathlib, sys, time\n"
        f"here, share = pathlib.Path({str(tmp_path)!r}), os.environ['SHARE']\n"
        "(here / f'share{share}').touch()\n"
        "start = time.time()\n"
        "while not (here / f'share{1 - int(share)}').exists() and time.time() - start < 60: time.sleep(0.01)\n"
        "sys.exit('alone' if time.time() - start >= 60 else 'together')\n"
    )
    reasons = run_all(runs, lambda run: [sys.executable, "-c", script], jobs=2, progress=False).failures.values()
    assert [reason.split()[3] for reason in reasons] == ["together", "together"]


def test_a_process_that_cannot_be_started_holds_no_share(tmp_path):
    runs = list_runs(EXPERIMENT, SETTINGS, tmp_path, 1)
    outcome = run_all(runs, lambda run: [str(tmp_path / "no such program")], jobs=1, progress=False)
    assert set(outcome.failures) == {"plain/0", "2 experts/0"}
    assert all("No such file" in reason for reason in outcome.failures.values())


def test_a_file_to_start_from_is_told_by_what_it_holds_wherever_it_lies(tmp_path):
    folder = tmp_path / "trained" / "m-abc"
    folder.mkdir(parents=True)
    paths = []
    for name in ("best", "last"):
        (folder / name).write_bytes(name.encode())
        settings = replace(SETTINGS, init_from=str(folder / name))
        paths.append(list_runs(EXPERIMENT, settings, tmp_path, 1)[0].path)
    assert paths[0] != paths[1]


def test_records_of_other_settings_stay(tmp_path):
    short, long = (list_runs(EXPERIMENT, replace(SETTINGS, epochs=epochs), tmp_path, 1)[0] for epochs in (2, 4))
    _save(short, 0.25)
    _save(long, 0.75)
    assert [run.record().score for run in (short, long)] == [0.25, 0.75]


@pytest.mark.parametrize("place", ["experiment", "record", "log", "trained", "training", "table"])
def test_a_link_below_the_directory_of_experiments_is_refused(tmp_path, place):
    run = list_runs(EXPERIMENT, SETTINGS, tmp_path / "out", 1)[0]
    training = Path(run.configs()[0].out)
    places = {"experiment": run.path.parent, "record": run.path, "log": run.log, "table": run.path.parent / "table.csv"}
    path = (places | {"trained": training.parent, "training": training})[place]
    path.parent.mkdir(parents=True)
    path.symlink_to(tmp_path)
    with pytest.raises(
        UsageError, match="`out` must not have other things in the place of a run's files, got .* a link"
    ):
        run.record()


@pytest.mark.parametrize("place", ["record", "log", "table.md", "plot.png"])
def test_a_directory_in_the_place_of_a_file_is_refused_before_the_runs(tmp_path, place):
    run = list_runs(EXPERIMENT, SETTINGS, tmp_path / "out", 1)[0]
    path = {"record": run.path, "log": run.log}.get(place, run.path.parent / place)
    path.mkdir(parents=True)
    with pytest.raises(
        UsageError, match="`out` must not have directories in the place of a run's files, got "
    ) as caught:
        run.record()
    assert str(path) in str(caught.value)


def test_a_record_that_is_none_is_named(tmp_path):
    run = list_runs(EXPERIMENT, SETTINGS, tmp_path, 1)[0]
    run.path.parent.mkdir(parents=True)
    run.path.write_text("{")
    with pytest.raises(
        UsageError, match=r"`out` must hold records of this version, got .*plain-seed0-\w{10}.json, which is not one"
    ):
        run.record()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"score": "high"}, "`score` must be a finite number, got 'high'"),
        ({"score": float("nan")}, "`score` must be a finite number, got nan"),
        ({"params": 2.5}, "`params` must be a whole number from"),
        ({"madds": True}, "`madds` must be a whole number from"),
        ({"label": 7}, "`label` must be a text, got 7"),
        ({"member_scores": 0.5}, "`member_scores` must be a list of"),
        ({"curve": [[]]}, "`curve[0]` must be a list of"),
        ({"loss_curve": [["low"]]}, "`loss_curve[0][0]` must be a finite number, got 'low'"),
        ({"machine": []}, "`machine` must be a mapping, got []"),
        ({"colour": "red"}, "it must be a mapping of curve, experiment,"),
    ],
)
def test_a_record_with_a_value_of_another_type_is_named_with_it(tmp_path, changes, said):
    run = list_runs(EXPERIMENT, SETTINGS, tmp_path, 1)[0]
    run.path.parent.mkdir(parents=True)
    run.path.write_text(json.dumps({**asdict(_record(run, 0.5)), **changes}))
    with pytest.raises(UsageError, match="`out` must hold records of this version, got ") as caught:
        run.record()
    assert f"which is not one ({said}" in str(caught.value)


def test_a_record_that_is_nested_without_end_is_refused(tmp_path):
    run = list_runs(EXPERIMENT, SETTINGS, tmp_path, 1)[0]
    run.path.parent.mkdir(parents=True)
    run.path.write_text("[" * 200_000)
    with pytest.raises(UsageError, match="`out` must hold records of this version"):
        run.record()


def test_finished_runs_are_kept_and_a_failed_one_loses_no_other(tmp_path):
    runs = list_runs(EXPERIMENT, SETTINGS, tmp_path, 2)
    _save(runs[0], 0.25)

    def command(run):
        assert run is not runs[0], "a finished run must not be repeated"
        if run is runs[1]:
            return [sys.executable, "-c", "raise SystemExit('condconv: error: no luck')"]
        return _saving(run, 0.75)

    outcome = run_all(runs, command, jobs=2, progress=False)
    assert [record.score for record in outcome.records] == [0.25, 0.75, 0.75]
    assert list(outcome.failures) == ["2 experts/0"]
    assert outcome.failures["2 experts/0"].startswith("exit status 1: condconv: error: no luck")
    again = run_all(runs, lambda run: _saving(run, 0.5), progress=False)
    assert [record.score for record in again.records] == [0.25, 0.5, 0.75, 0.75]
    assert not again.failures


def test_data_that_cannot_be_used_starts_no_process(tmp_path):
    runs = list_runs(EXPERIMENT, replace(SETTINGS, data=str(tmp_path / "none")), tmp_path, 1)
    with pytest.raises(UsageError, match="`data` must be"):
        run_all(runs, lambda run: pytest.fail("a process was started"), progress=False)


def test_without_a_terminal_each_run_is_a_line(tmp_path, capsys):
    runs = list_runs(EXPERIMENT, SETTINGS, tmp_path, 1)
    run_all(runs, lambda run: _saving(run, 0.5) if run is runs[0] else [sys.executable, "-c", "raise SystemExit('no')"])
    lines = [line for line in capsys.readouterr().err.splitlines() if "/0: " in line]
    assert sorted(lines)[0].startswith("2 experts/0: exit status 1: no")
    assert sorted(lines)[1] == "plain/0: finished"


def test_ctrl_c_stops_the_runs_at_work_and_starts_no_other(tmp_path, monkeypatch):
    runs = list_runs(EXPERIMENT, SETTINGS, tmp_path, 1)
    told = tmp_path / "told"
    script = (
        "import pathlib, signal, sys, time\n"
        f"signal.signal(signal.SIGTERM, lambda *_: (pathlib.Path({str(told)!r}).touch(), sys.exit(130)))\n"
        "print('ready', flush=True)\n"
        "time.sleep(100)\n"
    )

    def interrupted(futures):
        latest = time.monotonic() + 60
        while not runs[0].log.exists() or "ready" not in runs[0].log.read_text().splitlines():
            assert time.monotonic() < latest, "the run did not start"
            time.sleep(0.01)
        raise KeyboardInterrupt

    monkeypatch.setattr("condconv.lab.experiments.runner.as_completed", interrupted)
    with pytest.raises(TrainingInterrupted, match="0 of 2 runs are finished and kept"):
        run_all(runs, lambda run: [sys.executable, "-c", script], progress=False)
    assert told.exists()
    assert not runs[1].log.exists()


def test_a_process_that_ends_well_and_leaves_nothing_has_failed(tmp_path):
    runs = list_runs(EXPERIMENT, SETTINGS, tmp_path, 1)[:1]
    outcome = run_all(runs, lambda run: [sys.executable, "-c", "print('done')"], progress=False)
    assert outcome.failures["plain/0"].startswith("exit status 0: done")
    with pytest.raises(UsageError, match="`jobs` must be a whole number from 1 to 1,024, got 0"):
        run_all(runs, lambda run: [], jobs=0)


def test_rows_are_means_and_paired_differences(tmp_path):
    runs = list_runs(EXPERIMENT, SETTINGS, tmp_path, 2)
    accuracy = (0.50, 0.53, 0.60, 0.65)  # plain/0, experts/0, plain/1, experts/1
    records = [_record(run, score) for run, score in zip(runs, accuracy, strict=True)]
    plain, experts = summarise(EXPERIMENT, records)
    assert plain.score == pytest.approx(55.0)
    assert plain.spread == pytest.approx(50**0.5)  # of 50 and 60
    assert plain.difference is None
    assert experts.difference == pytest.approx(4.0)  # of 3 and 5
    assert experts.difference_spread == pytest.approx(2**0.5)
    assert experts.paper_difference == pytest.approx(3.5)
    assert experts.minutes == pytest.approx(1.0)
    text = table([plain, experts], "top-1 (%)")
    assert "| 2 experts |  2.00M | 3.00M | 59.00 ± 8.49 |" in text
    assert "+4.00 ± 1.41" in text
    assert "| 1.250 |" in text.replace("  ", "").replace("|1", "| 1").replace("0|", "0 |")
    only_one = summarise(EXPERIMENT, records[:2])[1]
    assert (only_one.spread, only_one.difference_spread) == (None, None)
    assert "+3.00 (1 of 2 seeds)" in table(summarise(EXPERIMENT, [*records[:2], records[3]]), "top-1 (%)")


def test_the_rule_of_an_experiment_is_printed_whatever_its_name(tmp_path):
    asked = replace(EXPERIMENT, rule="about one kernel")
    for experiment in (asked, replace(EXPERIMENT, name="compact")):
        records = tuple(_record(run, 0.5) for run in list_runs(experiment, SETTINGS, tmp_path, 1))
        _, files = write_tables(experiment, Outcome(records, {}), "Digits.", tmp_path / experiment.name)
        assert ("plain: no answer yet, " in files[0].read_text()) == (experiment is asked)
        assert read(files[2])[0] == experiment


def test_a_file_cannot_name_a_rule_that_is_not_there(tmp_path):
    numbers = {"experiment": {**asdict(EXPERIMENT), "rule": "os.system"}, "records": []}
    (tmp_path / "records.json").write_text(json.dumps(numbers))
    with pytest.raises(UsageError, match=r"version, got .*\(`rule` must be empty or one of .*, got 'os.system'"):
        read(tmp_path / "records.json")


def test_files_of_what_is_finished(tmp_path):
    runs = list_runs(EXPERIMENT, SETTINGS, tmp_path, 1)
    outcome = Outcome((_record(runs[0], 0.5),), {"2 experts/0": "exit status 1: no luck"})
    command = ["condconv", "experiment", "pair", "--data", "my images"]
    _, files = write_tables(EXPERIMENT, outcome, "Under these conditions.", tmp_path / "pair", command)
    assert [path.name for path in files] == ["table.md", "table.csv", "records.json", "plot.png"]
    text = files[0].read_text()
    assert "Failed: 2 experts/0, exit status 1: no luck" in text
    assert "Under these conditions. A note." in text
    assert files[1].read_text().splitlines()[1].startswith("plain,2000000,3000000,50.0,,1,,")
    assert read(files[2]) == (EXPERIMENT, outcome.records)
    assert json.loads(files[2].read_text())["command"] == "condconv experiment pair --data 'my images'"
    assert files[3].read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"experiment": {"name": "pair"}}', '{"experiment": "pair", "records": []}']
)
def test_a_file_that_holds_no_experiment(tmp_path, text):
    (tmp_path / "records.json").write_text(text)
    with pytest.raises(UsageError, match=r"`path` must be a records.json of this version, got .*records.json \("):
        read(tmp_path / "records.json")


def test_a_run_trains_measures_and_leaves_its_record(tmp_path):
    arm = Arm("two", "mobilenet_v1_025", {"output_stride": 8}, members=2)
    run = list_runs(Experiment("e", "", "", (arm,)), replace(SETTINGS, epochs=1, batch_size=300), tmp_path, 1)[0]
    record = execute(run, progress=False)
    assert list(run.record().member_scores) == list(record.member_scores)
    one = create_model("mobilenet_v1_025", num_classes=10, in_chans=1)
    assert record.params == 2 * sum(parameter.numel() for parameter in one.parameters())
    assert record.images_trained == 2 * 600  # two updates of 300 of the digits
    assert len(set(record.member_scores)) == 2, "members of one seed must differ"
    assert [len(curve) for curve in record.curve] == [len(curve) for curve in record.loss_curve] == [1, 1]
    # The time is that of the trainings, whoever did them.
    run.path.unlink()
    assert execute(run, progress=False).seconds == record.seconds > 0


def test_snapshots_go_on_from_one_another(tmp_path):
    arm = Arm("snapshots", "mobilenet_v1_012", {"output_stride": 8}, members=2, chained=True)
    settings = replace(SETTINGS, epochs=3, batch_size=300, warmup_epochs=1)
    run = list_runs(Experiment("e", "", "", (arm,)), settings, tmp_path, 1)[0]
    record = execute(run, progress=False)
    assert [len(curve) for curve in record.curve] == [2, 1]  # three epochs, shared out
    assert record.images_trained == 3 * 600
    first, second = (config.out for config in run.configs())
    assert run.configs()[1].init_from == f"{first}/last.safetensors"
    before, after = (load_checkpoint(f"{each}/last.safetensors").model["conv_stem.weight"] for each in (first, second))
    start = create_model("mobilenet_v1_012", num_classes=10, in_chans=1).conv_stem.weight
    assert (after - before).abs().max() < (start - before).abs().max()


def test_several_members_are_scored_by_their_mean_probability():
    class Says(nn.Module):
        def __init__(self, *probabilities):
            super().__init__()
            self.probabilities = torch.tensor(probabilities)

        def forward(self, x):
            return self.probabilities.log().expand(len(x), -1)

    def accuracy(members, images):
        return evaluate_images(_Average(members), images, Reading(device="cpu", batch_size=4, progress=False)).top1

    images = [(torch.zeros(1), 0), (torch.zeros(1), 1), (torch.zeros(1), IGNORED)]
    # Means (0.5, 0.45, 0.05): class 0, one of the two images that count. Two of three members alone say class 1.
    members = [Says(0.9, 0.05, 0.05), Says(0.3, 0.65, 0.05), Says(0.3, 0.65, 0.05)]
    assert accuracy(members, images) == 0.5
    assert accuracy(members[1:], images) == 0.5  # class 1: the other one
    assert accuracy(members, images[:1]) == 1.0
    assert accuracy(members[1:], images[:1]) == 0.0


def test_points_of_curves_are_drawn_by_cost(tmp_path):
    arms = (Arm("a", "mobilenet_v1_025", curve="static"), Arm("b", "mobilenet_v1_050", curve="static"))
    experiment = Experiment("curves", "Curves", "Figure 0", arms)
    runs = list_runs(experiment, SETTINGS, tmp_path, 1)
    rows = summarise(experiment, [_record(run, 0.5) for run in runs])
    plot(experiment, rows, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_a_difference_that_is_not_known_is_not_drawn(tmp_path, monkeypatch):
    runs = list_runs(EXPERIMENT, SETTINGS, tmp_path, seeds=2)
    records = [_record(run, 0.5) for run in runs if run.seed == (run.arm.label != "plain")]  # no seed of both
    points = []
    original = Axes.errorbar

    def errorbar(self, x, y, **options):
        points.append((list(x), list(y)))
        return original(self, x, y, **options)

    monkeypatch.setattr(Axes, "errorbar", errorbar)
    plot(EXPERIMENT, summarise(EXPERIMENT, records), tmp_path / "plot.png")
    assert points == [([], [])]


def test_a_run_whose_log_cannot_be_written_loses_no_other(tmp_path):
    runs = list_runs(EXPERIMENT, SETTINGS, tmp_path, seeds=1)

    def command(run):
        if run == runs[0]:
            run.log.mkdir(parents=True)  # a directory that was there before would be refused before all runs
        return _saving(run, 0.5)

    outcome = run_all(runs, command, progress=False)
    assert [record.label for record in outcome.records] == ["2 experts"]
    assert "directory" in outcome.failures["plain/0"]


def test_experts_are_left_out_where_there_are_some(tmp_path):
    plain, conditional = list_runs(EXPERIMENT, replace(SETTINGS, expert_dropout=0.1), tmp_path, seeds=1)
    assert plain.configs()[0].expert_dropout == 0
    assert conditional.configs()[0].expert_dropout == 0.1


def test_where_metrics_are_logged_makes_no_other_run(tmp_path):
    one, other = (list_runs(EXPERIMENT, replace(SETTINGS, log_with=each), tmp_path, 1)[0] for each in (None, "wandb"))
    assert one.fingerprint() == other.fingerprint()
    assert one.configs()[0].out == other.configs()[0].out


def test_weights_to_start_from_make_another_run_by_what_they_hold(tmp_path):
    def fingerprint(path):
        return list_runs(EXPERIMENT, replace(SETTINGS, init_from=path), tmp_path, seeds=1)[0].fingerprint()

    one, same, other = (tmp_path / name for name in ("one", "same", "other"))
    one.write_bytes(b"1")
    same.write_bytes(b"1")
    other.write_bytes(b"2")
    assert fingerprint(str(one)) == fingerprint(str(same))
    assert len({fingerprint(None), fingerprint(str(one)), fingerprint(str(other))}) == 3


def test_where_every_run_failed_there_is_no_plot(tmp_path):
    _, files = write_tables(EXPERIMENT, Outcome((), {"plain/0": "no room"}), "Digits.", tmp_path)
    assert [path.name for path in files] == ["table.md", "table.csv", "records.json"]
    assert "Failed: plain/0, no room" in (tmp_path / "table.md").read_text()
