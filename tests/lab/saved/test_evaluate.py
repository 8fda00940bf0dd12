import math

import pytest
import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from condconv.errors import UsageError
from condconv.lab.data.images import IGNORED
from condconv.lab.saved import Reading, evaluate_checkpoint
from condconv.lab.saved.evaluate import evaluate
from condconv.lab.train import train
from tests.lab.samples import build, make_folder, settings


def test_scores_worked_by_hand():
    # The "images" are the logits. Ranks of the true class: 1, 3, 6; the last image could not be read.
    logits = torch.tensor(
        [
            [9.0, 0, 0, 0, 0, 0],
            [5.0, 4, 3, 0, 0, 0],
            [5.0, 4, 3, 2, 1, 0],
            [9.0, 0, 0, 0, 0, 0],
        ]
    )
    targets = torch.tensor([0, 2, 5, IGNORED])
    network = nn.Identity().train()
    scores = evaluate(Accelerator(cpu=True), network, DataLoader(TensorDataset(logits, targets), 3))
    assert (scores.images, scores.skipped_images) == (3, 1)
    assert scores.top1 == pytest.approx(1 / 3)
    assert scores.top5 == pytest.approx(2 / 3)
    losses = [
        math.log(math.exp(9) + 5) - 9,
        math.log(math.exp(5) + math.exp(4) + math.exp(3) + 3) - 3,
        math.log(sum(math.exp(value) for value in range(6))) - 0,
    ]
    assert scores.loss == pytest.approx(sum(losses) / 3, rel=1e-6)
    assert network.training


def test_a_checkpoint_scores_what_training_said(tmp_path):
    result = train(settings(tmp_path, epochs=2), build=build)
    scores = evaluate_checkpoint(result.last, "digits", build=build, reading=Reading(device="cpu", batch_size=50))
    assert scores.images == 899
    assert scores.top1 == result.metrics[-1].val_top1
    assert scores.loss == pytest.approx(result.metrics[-1].val_loss, rel=1e-5)


def test_data_of_other_classes_is_refused(tmp_path):
    result = train(settings(tmp_path / "run", epochs=1), build=build)
    root = make_folder(tmp_path / "data")
    with pytest.raises(UsageError, match="`data` must have the classes that the network was trained on"):
        evaluate_checkpoint(result.last, str(root), build=build, reading=Reading(device="cpu"))


def test_a_batch_size_of_zero_is_refused():
    with pytest.raises(UsageError, match="`batch_size` must be a whole number from 1 to 1,000,000, or None, got 0"):
        Reading(batch_size=0)
