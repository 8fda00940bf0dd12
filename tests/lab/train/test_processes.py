"""Two processes on the CPU give what one gives, by DDP and by FSDP."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from condconv.lab.saved import load_checkpoint
from condconv.lab.train import train
from tests.lab.samples import StopAt, settings
from tests.lab.train.processes import SGD, UPDATES, build

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
# The mean of two halves' gradients rounds otherwise than the mean over all images: 1e-7 of it at each of 28 updates.
CLOSE = {"rtol": 1e-5, "atol": 1e-6}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Runs of one process, and of two in the same directory; `begun` ones have their first epoch from one process."""
    root = tmp_path_factory.mktemp("runs")
    train(settings(root / "one", **SGD), build=build)
    for kind in ("ddp", "fsdp"):
        stop = StopAt(UPDATES + 1, RuntimeError("second epoch"))
        with pytest.raises(RuntimeError, match="second epoch"):
            train(settings(root / f"begun-{kind}", **SGD), build=lambda *each, stop=stop: build(*each, first=stop))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [*launch, "-m", "tests.lab.train.processes", str(root)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-4000:]
    return root


def last(root, name):
    return load_checkpoint(root / name / "last.safetensors")


def assert_close(ours, theirs):
    torch.testing.assert_close(ours.model, theirs.model, **CLOSE)
    torch.testing.assert_close(ours.ema, theirs.ema, **CLOSE)
    for index, entries in ours.optimizer["state"].items():
        torch.testing.assert_close(entries, theirs.optimizer["state"][index], **CLOSE)
    for mine, other in zip(ours.metrics, theirs.metrics, strict=True):
        assert mine.train_loss == pytest.approx(other.train_loss, rel=1e-5)
        assert mine.val_loss == pytest.approx(other.val_loss, rel=1e-5)
        assert abs(mine.val_top1 - other.val_top1) < 2.5 / 899  # at most two images on an edge
        # One process watches its share of the images, but all of the experts, which FSDP shards.
        assert mine.routing_variation == pytest.approx(other.routing_variation, rel=0.1)
        assert mine.kernel_variation == pytest.approx(other.kernel_variation, rel=0.1)
        assert mine.expert_similarity == pytest.approx(other.expert_similarity, abs=1e-4)


@pytest.mark.parametrize("name", ["plain-ddp", "plain-fsdp", "begun-ddp", "begun-fsdp"])
def test_two_processes_give_the_run_of_one(root, name):
    assert_close(last(root, name), last(root, "one"))


def test_random_parts_are_the_same_with_ddp_and_fsdp(root):
    ddp, fsdp = last(root, "random-ddp"), last(root, "random-fsdp")
    assert_close(ddp, fsdp)
    assert not torch.equal(ddp.model["1.experts.weight"], last(root, "plain-ddp").model["1.experts.weight"])


@pytest.mark.parametrize("name", ["left-ddp", "left-fsdp"])
def test_a_run_of_two_processes_goes_on_with_one(root, name):
    """The second epoch is one process's, which does not need to take as many images at a time."""
    assert last(root, name).epoch == 1
    train(settings(root / name, **SGD, grad_accumulation=2), build=build)
    assert_close(last(root, name), last(root, "one"))
