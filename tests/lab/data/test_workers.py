"""Processes that read images and do not come to an end of their own: one sentence, and what is saved."""

import errno
import os
import resource
import signal

import pytest
import torch
from torch.utils.data import get_worker_info

from condconv.errors import TrainingError, UsageError
from condconv.lab.config import TrainConfig
from condconv.lab.data.folder import FolderReader
from condconv.lab.data.images import Images
from condconv.lab.data.loading import batches, create_loader
from condconv.lab.data.workers import ShortageError, check_handles, shortage, shortages_explained
from condconv.lab.saved import Reading, evaluate_checkpoint
from condconv.lab.train import train
from tests.lab.samples import build, make_folder, settings


@pytest.fixture
def few_handles():
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = len(os.listdir("/dev/fd"))  # noqa: PTH208
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 40, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def open_folder(tmp_path, **options) -> Images:
    return Images(FolderReader(make_folder(tmp_path / "data") / "val"), ("cat", "dog"), in_chans=3, **options)


def small(tmp_path, **changes) -> TrainConfig:
    data = str(make_folder(tmp_path / "data"))
    return settings(tmp_path / "run", **({"data": data, "image_size": 8, "batch_size": 4, "workers": 1} | changes))


def test_a_worker_that_is_killed_is_one_sentence_and_the_next_run_resumes(tmp_path, monkeypatch):
    config, real = small(tmp_path, epochs=2), Images.read

    def read(self, index):
        if get_worker_info() is not None and len(self) == 12 and (tmp_path / "run" / "last.safetensors").exists():
            os.kill(os.getpid(), signal.SIGKILL)
        return real(self, index)

    monkeypatch.setattr(Images, "read", read)
    with pytest.raises(TrainingError) as caught:
        train(config, build=build)
    assert str(caught.value).replace("(exited)", "(Killed)") == (  # torch may notice the one or the other
        "a process that reads images ended before its time (Killed), mostly for lack of memory: free some, or give "
        "fewer --workers, and run the same command again, which resumes the run; stopped after epoch 1 of 2: epoch 1 "
        f"is saved in {tmp_path / 'run'}"
    )
    monkeypatch.undo()
    assert [each.epoch for each in train(config, build=build).metrics] == [1, 2]


def test_a_worker_that_is_killed_while_a_checkpoint_is_scored(tmp_path, monkeypatch):
    config = small(tmp_path, epochs=1, workers=0)
    best = train(config, build=build).best
    monkeypatch.setattr(Images, "read", lambda self, index: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(
        ShortageError, match=r"ended before its time \((Killed|exited)\), mostly for lack of memory: free some"
    ):
        evaluate_checkpoint(best, config.data, build=build, reading=Reading(workers=1, device="cpu", progress=False))


def test_too_few_handles_for_the_workers_are_said_before_they_start(tmp_path, few_handles):
    images = open_folder(tmp_path)
    check_handles(2)
    create_loader(images, 2, workers=2)
    for workers in (4, 40):  # of four some would only fail later, after tracebacks of their own
        with pytest.raises(
            ShortageError, match=r"too few file handles .*: raise the limit \(ulimit -n 65536\), or give fewer"
        ):
            create_loader(images, 2, workers=workers)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENOMEM])
def test_no_image_is_left_out_for_what_the_machine_lacks(tmp_path, monkeypatch, number):
    """With --on-bad-image skip a run would lose images, and count them as broken."""
    images = open_folder(tmp_path, skip_unreadable=True)

    def fail(self, index):
        raise OSError(number, os.strerror(number), "a.png")

    monkeypatch.setattr(FolderReader, "__getitem__", fail)
    with pytest.raises(ShortageError, match="^too (few file handles|little memory).* and run the same command again$"):
        list(batches(create_loader(images, 2)))


def test_what_a_worker_lacks_is_said_without_its_traceback():
    def loader():
        text = (
            "Caught ShortageError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n  ..."
        )
        raise ShortageError(f"{text}\ncondconv.lab.data.workers.ShortageError: too little memory: free some\n")
        yield

    with pytest.raises(ShortageError, match="^too little memory: free some$"):
        list(batches(loader()))


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError(), "too little memory: free some"),
        (RuntimeError("received 0 items of ancdata"), "too few file handles"),
        (RuntimeError("Too many open files. Communication with the workers is no longer possible."), "too few file"),
        (RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left"), "--shm-size 8g"),
        (RuntimeError("DataLoader worker (pid(s) 7, 8) exited unexpectedly"), r"before its time \(exited\)"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error. It is possible"), r"\(Bus error\)"),
    ],
)
def test_what_the_machine_lacks_is_one_sentence(error, words):
    with pytest.raises(ShortageError, match=words) as caught, shortages_explained():
        raise error
    assert caught.value.__cause__ is error
    assert str(caught.value).endswith("or give fewer --workers, and run the same command again")


def test_too_little_memory_of_a_gpu_is_one_sentence():
    text = "CUDA out of memory. Tried to allocate 8.00 GiB. GPU 0 has a total capacity of 4.00 GiB"
    with pytest.raises(ShortageError) as caught, shortages_explained():
        raise torch.OutOfMemoryError(text)
    assert str(caught.value) == (
        "too little memory on the GPU: free some, give train more --grad-accumulation, lower --batch-size elsewhere, "
        "and run the same command again"
    )


@pytest.mark.parametrize(
    "error", [RuntimeError("shapes differ"), FileNotFoundError(2, "No such file"), UsageError("x")]
)
def test_other_errors_pass(error):
    assert shortage(error) is None
    with pytest.raises(type(error)) as caught, shortages_explained():
        raise error
    assert caught.value is error
