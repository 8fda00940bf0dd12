import math

import pytest
import torch
from torch.nn import functional as F

from condconv.lab.data.images import IGNORED
from condconv.lab.train.loss import create_mixup, mean_loss, mix
from tests.lab.samples import settings

LOGITS = torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 3.0], [1.0, 1.0, 1.0]])


def test_images_that_could_not_be_read_count_nowhere():
    targets = torch.tensor([0, IGNORED, 2, 1])
    kept = F.cross_entropy(LOGITS[[0, 2, 3]], targets[[0, 2, 3]], label_smoothing=0.1)
    torch.testing.assert_close(mean_loss(LOGITS, targets, 0.1), kept)
    assert mean_loss(LOGITS, torch.full((4,), IGNORED), 0.1) == 0


def test_mixed_targets_weigh_both_classes(tmp_path):
    """Half of either image: the loss of the fourth row, whose logits are equal, is log 3 whatever the targets."""
    soft = torch.tensor([[0.5, 0.5, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0], [0.2, 0.3, 0.5]])
    log = LOGITS.log_softmax(1)
    expected = -(0.5 * log[0, 0] + 0.5 * log[0, 1] + log[1, 1] - math.log(3)) / 3
    torch.testing.assert_close(mean_loss(LOGITS, soft, 0.1), expected)
    assert mean_loss(LOGITS, torch.zeros(4, 3), 0.1) == 0


def test_no_mixing_unless_asked(tmp_path):
    assert create_mixup(settings(tmp_path), 3) is None


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_an_image_and_its_partner_are_mixed_as_their_targets_are(tmp_path, kind):
    """Images of one value show their share: with mixup at each pixel, with cutmix as the mean over pixels."""
    mixup = create_mixup(settings(tmp_path, **{kind: 1.0}, label_smoothing=0.0), 4)
    images = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 1, 64, 64).clone()
    mixed, soft = mix(mixup, images, torch.arange(4))
    values = soft @ torch.arange(4.0)  # what the targets say of the mixture
    torch.testing.assert_close(mixed.mean((1, 2, 3)), values)
    assert soft.sum(1).tolist() == pytest.approx([1] * 4)
    assert 0 < soft[0, 3] < 1


def test_a_pair_with_an_image_that_could_not_be_read_counts_nowhere(tmp_path):
    mixup = create_mixup(settings(tmp_path, mixup=1.0), 4)
    _, soft = mix(mixup, torch.zeros(4, 1, 2, 2), torch.tensor([0, IGNORED, 2, 3]))
    assert soft.sum(1).tolist() == pytest.approx([1, 0, 0, 1])
