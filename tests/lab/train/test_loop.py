import errno
import json
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from threading import Event

import numpy as np
import pytest
import safetensors
import torch
from torch import nn
from torch._inductor.exc import InvalidCxxCompiler

from condconv.errors import TrainingError, TrainingInterrupted, UsageError
from condconv.files.checkpoint_format import StoredCheckpoint
from condconv.lab.processes import only_here
from condconv.lab.saved import Reading, evaluate_checkpoint, load_checkpoint
from condconv.lab.saved.checkpoint import save_checkpoint
from condconv.lab.saved.metrics import EpochMetrics, as_csv
from condconv.lab.train import loop, tracking, train
from condconv.nn import CondConv2d, SoftmaxRouting
from tests.files.checkpoint_format.samples import forge
from tests.lab.samples import (
    NanAt,
    StopAt,
    build,
    build_with,
    make_folder,
    same_tensors,
    settings,
    small_network,
)

UPDATES = 898 // 128  # updates per epoch of the digits in the settings of these tests


def numbers(result):
    return [replace(each, train_images_per_second=0.0, seconds=0.0) for each in result.metrics]


def assert_same_run(ours, theirs):
    assert numbers(ours) == numbers(theirs)
    for kind in ("last", "best"):
        one, other = load_checkpoint(getattr(ours, kind)), load_checkpoint(getattr(theirs, kind))
        assert same_tensors(one.model, other.model)
        assert (one.ema is None) == (other.ema is None)
        assert same_tensors(one.ema or {}, other.ema or {})
        if kind == "last":
            assert one.optimizer is not None
            assert other.optimizer is not None
            for index, entries in one.optimizer["state"].items():
                assert same_tensors(entries, other.optimizer["state"][index])
            assert one.optimizer["param_groups"] == other.optimizer["param_groups"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    config = settings(tmp_path_factory.mktemp("whole"), random_erasing=0.5)
    return train(config, build=build)


@pytest.mark.parametrize(
    ("step", "error", "left"),
    [
        (2 * UPDATES + 1, RuntimeError("stop before the third epoch's first update"), 2),
        (2 * UPDATES + 4, RuntimeError("stop in the middle of the third epoch"), 2),
        (3, KeyboardInterrupt(), 4),
    ],
)
def test_interrupted_and_resumed_equals_uninterrupted(tmp_path, whole, step, error, left):
    config = settings(tmp_path, random_erasing=0.5)
    with pytest.raises((RuntimeError, TrainingInterrupted), match="^stop"):
        train(config, build=build_with(StopAt(step, error)))
    torch.manual_seed(12345)  # what happened in the process before must not matter
    no_more = StopAt(left * UPDATES + 1, RuntimeError("finished epochs were trained again"))
    resumed = train(config, build=build_with(no_more))
    assert_same_run(whole, resumed)


def test_workers_give_the_same_run_each_time_and_when_resumed(tmp_path):
    root = make_folder(tmp_path / "data")
    changes = {"data": str(root), "image_size": 8, "batch_size": 4, "epochs": 2, "workers": 2}
    one, other = (settings(tmp_path / name, **changes, color_jitter=0.4) for name in ("one", "other"))
    with pytest.raises(RuntimeError, match="second epoch"):
        train(other, build=build_with(StopAt(4, RuntimeError("second epoch"))))
    assert_same_run(train(one, build=build), train(other, build=build))


def test_a_run_learns_and_leaves_its_files(whole):
    losses = [each.train_loss for each in whole.metrics]
    assert losses[-1] < losses[0]
    assert [each.epoch for each in whole.metrics] == [1, 2, 3, 4]
    assert sorted(path.name for path in whole.out.iterdir()) == [
        ".lock",
        "best.safetensors",
        "config.json",
        "last.safetensors",
        "metrics.csv",
        "metrics.jsonl",
    ]
    assert (whole.out / "metrics.csv").read_text() == as_csv(whole.metrics, EpochMetrics)
    assert load_checkpoint(whole.best).epoch == whole.best_epoch.epoch
    assert load_checkpoint(whole.best).optimizer is None
    assert whole.params == sum(each.numel() for each in small_network(10, 1).parameters())


def test_without_a_terminal_each_epoch_is_a_line(tmp_path, capsys):
    config = settings(tmp_path / "shown", epochs=1)
    result = train(config, build=build)
    accuracy = f"{100 * result.metrics[0].val_top1:.2f} %"
    assert capsys.readouterr().err == f"epoch 1/1: train loss {result.metrics[0].train_loss:.4f}, top-1 {accuracy}\n"
    train(settings(tmp_path / "quiet", epochs=1), build=build, progress=False)
    assert capsys.readouterr().err == ""


def test_a_finished_run_is_returned_without_training(whole):
    config = settings(whole.out, random_erasing=0.5)
    again = train(config, build=build_with(StopAt(1, RuntimeError("it trained"))))
    assert again == whole


def test_another_seed_gives_another_run(tmp_path, whole):
    other = train(settings(tmp_path, random_erasing=0.5, seed=1, epochs=1), build=build)
    assert other.metrics[0].train_loss != whole.metrics[0].train_loss


def test_a_run_of_other_settings_in_the_directory_is_refused(whole):
    with pytest.raises(UsageError, match="differs in lr: 0.5, not 0.001; random_erasing: 0.0, not 0.5: give"):
        train(settings(whole.out, lr=0.5), build=build)


@pytest.mark.parametrize("changes", [{"random_erasing": 0.5}, {"lr": 0.5}], ids=["same", "other"])
def test_a_best_checkpoint_without_the_last_is_not_replaced(tmp_path, whole, changes):
    assert whole.best_epoch.epoch > 1
    kept = tmp_path / "best.safetensors"
    kept.write_bytes(whole.best.read_bytes())
    with pytest.raises(UsageError, match="must have a last.safetensors where .* alone, .* replace: move it to another"):
        train(settings(tmp_path, **changes), build=build)
    assert kept.read_bytes() == whole.best.read_bytes()


def test_a_run_that_was_killed_before_its_first_last_checkpoint_begins_again(tmp_path):
    config = settings(tmp_path, epochs=1)
    first = train(config, build=build)
    first.last.unlink()
    assert train(config, build=build).metrics[0].train_loss == first.metrics[0].train_loss


def test_a_truncated_checkpoint_stops_the_resuming_run(tmp_path, whole):
    (tmp_path / "last.safetensors").write_bytes(whole.last.read_bytes()[:-1])
    with pytest.raises(UsageError, match="must be a whole safetensors file"):
        train(settings(tmp_path), build=build)


@pytest.mark.parametrize("name", ["1.weight", "2.running_var"])
def test_weights_that_are_not_finite_are_not_resumed_from(tmp_path, name):
    path = train(settings(tmp_path, epochs=1, ema_decay=0.5), build=build).last
    checkpoint = load_checkpoint(path)
    config = replace(checkpoint.config, epochs=2)
    checkpoint.model[name].view(-1)[0] = float("nan")
    save_checkpoint(path, replace(checkpoint, config=config))
    with pytest.raises(TrainingError, match="has diverged, or the file is damaged: not all values of") as caught:
        train(config, build=build)
    assert f"{name} are finite; put an earlier copy in its place, or train again in another --out" in str(caught.value)


@pytest.mark.parametrize("part", ["model", "optimizer"])
def test_a_file_with_holes_is_not_resumed_from_and_not_read(tmp_path, monkeypatch, part):
    path = train(settings(tmp_path, epochs=1), build=build).last
    with safetensors.safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.offset_keys()}
        header = json.loads(file.metadata()["condconv"])
    del header["digests"]
    name = next(each for each, tensor in tensors.items() if each.startswith(part) and tensor.ndim)
    forge(path, header, tensors | {name: torch.zeros(2**20)})
    monkeypatch.setattr(StoredCheckpoint, "read", None)
    with pytest.raises(UsageError, match="`checkpoint` must hold the (weights|state of an optimizer) of this network"):
        train(settings(tmp_path, epochs=1), build=build)


@pytest.mark.parametrize("step", [UPDATES + 2, 2 * UPDATES])
def test_a_loss_that_is_no_number_stops_and_keeps_the_epochs_before(tmp_path, step, monkeypatch):
    config, rates, do_step = settings(tmp_path), [], loop._step

    def watched(run, images, targets):
        rates.append(run.optimizer.param_groups[0]["lr"])
        return do_step(run, images, targets)

    monkeypatch.setattr(loop, "_step", watched)
    with pytest.raises(TrainingError) as caught:
        train(config, build=build_with(NanAt(step, RuntimeError())))
    message = str(caught.value)
    assert f"the loss became nan in epoch 2, step {step - UPDATES}, at learning rate {rates[step - 1]:.3g}; " in message
    assert f"epochs 1 to 1 are saved in {tmp_path}" in message
    assert load_checkpoint(tmp_path / "last.safetensors").epoch == 1


def test_ctrl_c_says_what_is_saved(tmp_path):
    config = settings(tmp_path)
    with pytest.raises(TrainingInterrupted, match="stopped in epoch 1: nothing is saved yet"):
        train(config, build=build_with(StopAt(1, KeyboardInterrupt())))
    with pytest.raises(TrainingInterrupted, match="stopped after epoch 2 of 4: epochs 1 to 2 are saved in"):
        train(config, build=build_with(StopAt(2 * UPDATES + 1, KeyboardInterrupt())))


def test_ctrl_c_while_an_epoch_is_saved_does_not_count_it(tmp_path, monkeypatch):
    def interrupted(path, checkpoint):
        if checkpoint.epoch == 2 and path.name == "last.safetensors":
            raise KeyboardInterrupt
        return save_checkpoint(path, checkpoint)

    monkeypatch.setattr("condconv.lab.train.run.save_checkpoint", interrupted)
    with pytest.raises(TrainingInterrupted, match="stopped after epoch 1 of 4: epoch 1 is saved in"):
        train(settings(tmp_path), build=build)
    assert load_checkpoint(tmp_path / "last.safetensors").epoch == 1


def test_an_optimizer_that_cannot_be_saved_is_refused_at_its_first_update(tmp_path, monkeypatch):
    # Or torch compiles its functions first. What it keeps is the same.
    monkeypatch.setattr(pytest.importorskip("timm.optim.kron"), "has_dynamo", False)
    stop = StopAt(2, RuntimeError("a second update"))
    with pytest.raises(UsageError, match="`optimizer` must keep numbers and tensors only, to be saved"):
        train(settings(tmp_path, optimizer="kron"), build=build_with(stop))


def test_a_run_does_not_go_on_with_other_images(tmp_path):
    root = make_folder(tmp_path / "data")
    config = settings(tmp_path / "run", data=str(root), image_size=8, batch_size=4, epochs=2)
    with pytest.raises(RuntimeError, match="stop"):
        train(config, build=build_with(StopAt(4, RuntimeError("stop"))))
    (root / "train" / "cat" / "0.png").unlink()
    with pytest.raises(UsageError, match=r"`data` must have the training images of the run in .*run \(12\), got 11"):
        train(config, build=build)


def test_processes_that_find_other_epochs_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("condconv.lab.train.run.gather_object", lambda own: [*own, 3])
    with pytest.raises(UsageError, match="where some find 0 finished epochs and others 3: give a directory"):
        train(settings(tmp_path), build=build)


def test_a_run_that_is_waited_for_is_not_trained_again(tmp_path, whole):
    taken = Event()

    def other():
        with only_here(tmp_path):
            taken.set()
            time.sleep(0.3)
            for path in whole.out.iterdir():
                if not path.name.startswith("."):
                    shutil.copy(path, tmp_path)

    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(other)
        assert taken.wait(30)
        stop = StopAt(1, RuntimeError("it trained"))
        result = train(settings(tmp_path, random_erasing=0.5), build=build_with(stop), wait=True)
        done.result()
    assert result.metrics == whole.metrics


def test_accumulated_updates_equal_whole_ones(tmp_path):
    def linear(config, num_classes, in_chans):
        return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))

    once, thrice = (
        train(settings(tmp_path / str(n), epochs=1, batch_size=99, grad_accumulation=n, clip_grad=1.0), build=linear)
        for n in (1, 3)
    )
    ours, theirs = (load_checkpoint(each.last).model for each in (once, thrice))
    for name, each in ours.items():
        torch.testing.assert_close(each, theirs[name], rtol=1e-4, atol=1e-5)
    assert once.metrics[0].lr == thrice.metrics[0].lr


def test_unreadable_images_are_named_and_counted_and_change_no_accuracy(tmp_path, caplog):
    root = make_folder(tmp_path / "data")
    for place in ("train/cat/0.png", "val/dog/0.png"):
        (root / place).write_bytes(b"no image")
    config = settings(tmp_path / "run", data=str(root), image_size=8, batch_size=12, epochs=2, on_bad_image="skip")
    metrics = train(config, build=build).metrics[0]
    assert metrics.skipped_images == 2
    named = [record.getMessage() for record in caplog.records]
    for place in ("train/cat/0.png", "val/dog/0.png"):
        assert sum(f"left out, unreadable: {root / place} (cannot identify image file)" in each for each in named) == 1
    assert metrics.val_top1 in {count / 5 for count in range(6)}
    assert metrics.val_top5 is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"optimizer": "adamwow"},
            "`optimizer` must be a name that timm knows, got 'adamwow'",
        ),
        ({"optimizer": "adahessian"}, "`optimizer` must need first derivatives only, got 'adahessian'"),
        ({"optimizer": "sgd", "optimizer_options": {"momentum": -1.0}}, "here, got {'momentum': -1.0} (Invalid"),
        ({"auto_augment": "cutout", "in_chans": 3}, "`auto_augment` must be a policy that timm knows, got 'cutout'"),
        ({"scheduler": "plateau"}, "`scheduler` must be one of cosine"),
        ({"auto_augment": "rand-m9"}, "`auto_augment` must be None with one image channel"),
        ({"image_size": 1}, "`image_size` must suit the network, got 1"),
    ],
)
def test_settings_that_do_not_fit_are_refused_before_training(tmp_path, changes, message):
    def shrinking(config, num_classes, in_chans):
        return nn.Sequential(
            nn.Conv2d(in_chans, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes)
        )

    with pytest.raises(UsageError) as caught:
        train(settings(tmp_path, **changes), build=shrinking)
    assert message in str(caught.value)
    assert not (tmp_path / "last.safetensors").exists()


def test_a_network_with_another_number_of_outputs_is_refused(tmp_path):
    def wrong(config, num_classes, in_chans):
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 7))

    with pytest.raises(
        UsageError, match=r"`model` must give one number per class, \[2, 10\] for two images, got \[2, 7\]"
    ):
        train(settings(tmp_path), build=wrong)


def test_bf16_and_channels_last_train_and_keep_float32_weights(tmp_path):
    result = train(settings(tmp_path, epochs=1, mixed_precision="bf16", channels_last=True), build=build)
    assert 0 < result.metrics[0].train_loss < 5
    assert load_checkpoint(result.last).model["1.weight"].dtype == torch.float32


def test_each_epoch_has_an_order_of_its_own(tmp_path):
    class FirstImage(nn.Module):
        def __init__(self):
            super().__init__()
            self.seen = []

        def forward(self, x):
            if self.training:
                self.seen.append(x[0].clone())
            return x

    first = FirstImage()
    train(settings(tmp_path, epochs=2), build=build_with(first))
    assert len(first.seen) == 2 * UPDATES
    assert not any(
        torch.equal(one, other) for one, other in zip(first.seen[:UPDATES], first.seen[UPDATES:], strict=True)
    )


EVERYTHING = {
    "mixup": 0.2,
    "cutmix": 1.0,
    "expert_dropout": 0.3,
    "ema_decay": 0.9,
    "random_erasing": 0.5,
    "clip_grad": 1.0,
    "optimizer": "rmsproptf",
    "scheduler": "step",
    "scheduler_options": {"decay_epochs": 0.4, "decay_rate": 0.9},
    "epochs": 3,
}


def conditional(first):
    """Builds a network with all that has a state: experts, a temperature that anneals, statistics, dropout."""

    def build_conditional(config, num_classes, in_chans):
        routing = partial(SoftmaxRouting, temperature=5.0, final_temperature=1.0, annealing_steps=10)
        layer = CondConv2d(in_chans, 8, 3, num_experts=3, routing=routing)
        rest = [nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(0.2), nn.Linear(32, num_classes)]
        return nn.Sequential(first, layer, *rest)

    return build_conditional


@pytest.fixture(scope="module")
def whole_with_everything(tmp_path_factory):
    return train(settings(tmp_path_factory.mktemp("everything"), **EVERYTHING), build=conditional(nn.Identity()))


@pytest.mark.parametrize("step", [UPDATES + 1, 2 * UPDATES + 3])
def test_interrupted_and_resumed_equals_uninterrupted_with_everything_on(tmp_path, whole_with_everything, step):
    config = settings(tmp_path, **EVERYTHING)
    with pytest.raises(RuntimeError, match="stop"):
        train(config, build=conditional(StopAt(step, RuntimeError("stop"))))
    begun = load_checkpoint(tmp_path / "last.safetensors")
    assert begun.model["1.routing_fn.annealing_step"] == min(10, (step - 1) // UPDATES * UPDATES)
    torch.manual_seed(12345)
    np.random.seed(12345)
    resumed = train(config, build=conditional(nn.Identity()))
    assert_same_run(whole_with_everything, resumed)
    last = load_checkpoint(resumed.last)
    assert last.ema["1.routing_fn.temperature"] == last.model["1.routing_fn.temperature"] == 1.0


def test_the_average_is_scored_and_kept_as_the_best(whole_with_everything):
    result = whole_with_everything
    last, best = load_checkpoint(result.last), load_checkpoint(result.best)
    assert not torch.equal(last.ema["1.experts.weight"], last.model["1.experts.weight"])
    assert best.ema is None
    for path, epoch in ((result.last, result.metrics[-1]), (result.best, result.best_epoch)):
        scores = evaluate_checkpoint(path, "digits", build=conditional(nn.Identity()), reading=Reading(device="cpu"))
        assert scores.top1 == epoch.val_top1
        assert scores.loss == pytest.approx(epoch.val_loss, rel=1e-5)


def test_each_random_part_changes_the_run(tmp_path):
    def loss(**changes):
        config = settings(tmp_path / "-".join(changes), **(EVERYTHING | {"epochs": 1} | changes))
        return train(config, build=conditional(nn.Identity())).metrics[0].train_loss

    losses = [loss(), loss(mixup=0.0), loss(cutmix=0.0), loss(expert_dropout=0.0)]
    assert len(set(losses)) == 4


def test_a_run_without_progress_stops_early_and_is_finished(tmp_path):
    """With almost no learning rate the first epoch stays the best, so two more are made of ten."""

    def linear(config, num_classes, in_chans, first=None):
        return nn.Sequential(first or nn.Identity(), nn.Flatten(), nn.Linear(64, num_classes))

    config = settings(tmp_path, lr=1e-12, epochs=10, patience=2)
    result = train(config, build=linear)
    assert (result.best_epoch.epoch, len(result.metrics)) == (1, 3)
    stop = StopAt(1, RuntimeError("it trained"))
    assert train(config, build=lambda *given: linear(*given, first=stop)) == result


def test_the_metrics_are_written_as_json_lines(whole):
    lines = (whole.out / "metrics.jsonl").read_text().splitlines()
    assert [EpochMetrics(**json.loads(line)) for line in lines] == list(whole.metrics)


@pytest.mark.slow
def test_tensorboard_gets_each_epoch(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    result = train(settings(tmp_path, epochs=2, log_with="tensorboard"), build=build)
    events = accumulator.EventAccumulator(str(tmp_path / "condconv")).Reload()
    logged = [(each.step, each.value) for each in events.Scalars("val_loss")]
    assert logged == [(each.epoch, pytest.approx(each.val_loss)) for each in result.metrics]


def test_a_full_disk_stops_the_run_and_the_next_goes_on(tmp_path, monkeypatch, whole):
    """The disk fills while the second epoch's last checkpoint is written, and is emptied afterwards."""
    config = settings(tmp_path, random_erasing=0.5)
    (tmp_path / ".editor.tmp").mkdir()  # another program's
    leftover = tmp_path / ".condconv-best.safetensors-00ff00ff00ff00ff.tmp"
    leftover.write_bytes(b"of a run that was killed")
    real = os.fsync

    def fsync(descriptor):
        if list(tmp_path.glob(".condconv-last.safetensors-*")) and (tmp_path / "last.safetensors").exists():
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(UsageError, match="no space left on the disk for .*last.safetensors .* is intact"):
        train(config, build=build)
    monkeypatch.undo()
    assert load_checkpoint(tmp_path / "last.safetensors").epoch == 1
    assert {path.name for path in tmp_path.glob(".*")} == {".lock", ".editor.tmp"}  # no half of a file
    assert_same_run(whole, train(config, build=build))


def test_a_run_goes_on_without_the_file_that_it_started_from(tmp_path, whole):
    start = tmp_path / "start.safetensors"
    start.write_bytes(whole.best.read_bytes())
    config = settings(tmp_path / "run", epochs=2, lr=1e-12, init_from=str(start))
    with pytest.raises(RuntimeError, match="stop"):
        train(config, build=build_with(StopAt(UPDATES + 1, RuntimeError("stop"))))
    started = load_checkpoint(tmp_path / "run" / "last.safetensors").model["1.weight"]
    torch.testing.assert_close(started, load_checkpoint(whole.best).model["1.weight"])
    start.unlink()
    assert len(train(config, build=build).metrics) == 2


def test_a_machine_that_cannot_compile_is_one_sentence(tmp_path, monkeypatch):
    def without_compiler(*arguments):
        raise InvalidCxxCompiler

    monkeypatch.setattr("condconv.lab.train.loop._step", without_compiler)
    message = "`compile` must be possible with torch.compile here, got No working C.. compiler found in .*: install"
    with pytest.raises(TrainingError, match=message):
        train(settings(tmp_path / "run", compile=True), build=build)


@pytest.mark.slow
def test_a_compiled_network_trains_and_leaves_what_the_network_would(tmp_path):
    def without_dropout(config, num_classes, in_chans):  # whose numbers the compiler draws otherwise
        network = conditional(nn.Identity())(config, num_classes, in_chans)
        network[5] = nn.Identity()
        return network

    plain, compiled = (
        train(settings(tmp_path / str(each), epochs=1, compile=each), build=without_dropout) for each in (False, True)
    )
    ours, theirs = (load_checkpoint(each.last).model for each in (compiled, plain))
    assert ours.keys() == theirs.keys()
    for name, each in ours.items():
        torch.testing.assert_close(each, theirs[name], rtol=1e-2, atol=1e-3)
    assert compiled.metrics[0].train_loss == pytest.approx(plain.metrics[0].train_loss, rel=1e-3)


@pytest.mark.parametrize("name", ["config.json", "metrics.csv", "best.safetensors"])
def test_a_pipe_where_a_run_writes_is_refused_before_it_begins(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(UsageError, match=rf"`out` must not have other things .* got .*/{name}, a pipe or a device: "):
        train(settings(tmp_path, epochs=1), build=build)


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl", "last.safetensors", "condconv", "wandb-id", ".lock"])
def test_a_link_where_a_run_writes_is_refused_before_it_begins(tmp_path, name):
    """As of a stranger's directory, in which it would lead to any file of the user's."""
    theirs, out = tmp_path / "theirs", tmp_path / "run"
    theirs.write_text("theirs")
    out.mkdir()
    (out / name).symlink_to(theirs)
    with pytest.raises(UsageError, match=rf"`out` must .*{name}"):
        train(settings(out, epochs=1), build=build)
    assert theirs.read_text() == "theirs"


@pytest.mark.parametrize("name", ["metrics.csv", "last.safetensors", "condconv"])
def test_a_folder_for_a_file_and_a_file_for_a_folder_are_refused_before_it_begins(tmp_path, name):
    path = tmp_path / name
    path.write_text("") if name == "condconv" else path.mkdir()
    with pytest.raises(UsageError, match=rf"`out` must hold a run's files as files .*, got .*{name}: remove it"):
        train(settings(tmp_path, epochs=1, log_with="tensorboard"), build=build)


def test_an_identity_that_no_run_wrote_is_not_sent(tmp_path):
    for text in ("a secret", "", "0" * 10**6):
        (tmp_path / "wandb-id").write_text(text)
        with pytest.raises(UsageError, match="`out` must hold a wandb-id as this run wrote it, 16 hexadecimal digits"):
            tracking.identity(tmp_path / "wandb-id")
    (tmp_path / "wandb-id").unlink()
    drawn = tracking.identity(tmp_path / "wandb-id")
    assert tracking.identity(tmp_path / "wandb-id") == drawn
