import math

import pytest
import torch

from condconv.analysis import statistics
from condconv.analysis.experts import duplicate_experts, expert_similarity
from condconv.nn import CondConv2d


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_shares_are_parts_of_the_sum_of_sizes():
    weights = tensor([1.0, 3.0], [0.0, 0.0], [-1.0, 1.0])
    # 1 of 4, 3 of 4; nothing is mixed, so equal; a negative weight mixes as much as a positive one
    assert statistics.shares(weights).tolist() == [[0.25, 0.75], [0.5, 0.5], [0.5, 0.5]]


def test_entropy_in_bits():
    # 1/2 * 1 + 2 * 1/4 * 2 = 1.5 bits; one certain outcome has none; eight alike have three
    assert statistics.entropy(tensor(0.5, 0.25, 0.25)).item() == pytest.approx(1.5)
    assert statistics.entropy(tensor(1.0, 0.0)).item() == 0
    assert statistics.entropy(torch.full((8,), 0.125, dtype=torch.float64)).item() == pytest.approx(3)


def test_histogram_bins_and_their_ends():
    # Bins are 0.025 wide. 0 is in bin 0, 0.1 in bin 4, 0.9 in bin 36, 1 in the last; -1 and 2 go to the ends.
    counts = statistics.histogram(tensor([0.0, 0.1], [1.0, 0.9], [-1.0, 2.0]))
    assert counts.shape == (2, 40)
    assert counts[0].nonzero().flatten().tolist() == [0, 39]
    assert counts[0, 0] == 2
    assert counts[1].nonzero().flatten().tolist() == [4, 36, 39]


def test_extremes_start_at_the_edges():
    # 0.05 is below 0.1 and 0.1 is not; 0.9 and 1 are not below 0.9, 0.89 is: 1 of 5 low, 2 of 5 high
    counts = statistics.histogram(tensor([0.05], [0.1], [0.9], [0.89], [1.0]))
    assert statistics.extremes(counts) == pytest.approx((0.2, 0.4))


def test_variance_between_and_within_worked_by_hand():
    # Class A has weights 0 and 2, class B has 4 and 6 and 8, class C was not seen. Means 1, 6; over all 20 / 5 = 4.
    # Between: (2 * (1 - 4)^2 + 3 * (6 - 4)^2) / 5 = (18 + 12) / 5 = 6.
    # Within: ((1 + 1) + (4 + 0 + 4)) / 5 = 2. Together 8: (16 + 4 + 0 + 4 + 16) / 5 = 8.
    examples = torch.tensor([2, 3, 0])
    sums, squares = tensor([2.0], [18.0], [0.0]), tensor([4.0], [116.0], [0.0])
    between, within = statistics.variances(examples, sums, squares)
    assert between.tolist() == pytest.approx([6])
    assert within.tolist() == pytest.approx([2])
    assert statistics.between_class_share(between, within) == pytest.approx(0.75)


def test_rounding_of_a_constant_is_no_variance():
    weight = torch.tensor(1 / 3, dtype=torch.float32).double().item()
    examples = torch.tensor([1000, 1000])
    sums, squares = tensor([1000 * weight], [1000 * weight + 1e-10]), tensor([1000 * weight**2], [1000 * weight**2])
    parts = statistics.variances(examples, sums, squares)
    assert [part.tolist() for part in parts] == [[0], [0]]
    assert statistics.between_class_share(*parts) == 0


def test_chance_share_counts_seen_classes():
    # 10 examples of 4 seen classes: 3 / 9
    assert statistics.chance_share(torch.tensor([1, 2, 3, 4, 0])) == pytest.approx(1 / 3)
    assert statistics.chance_share(torch.tensor([1])) == 1


def test_mutual_information_worked_by_hand():
    # Two classes of 2 examples. One expert each: H(1/2, 1/2) - 0 = 1 bit.
    examples = torch.tensor([2, 2])
    assert statistics.mutual_information(examples, tensor([2.0, 0.0], [0.0, 2.0])) == pytest.approx(1)
    # Both classes use the experts alike: nothing.
    assert statistics.mutual_information(examples, tensor([0.5, 1.5], [0.5, 1.5])) == pytest.approx(0, abs=1e-12)
    # Unequal classes, 3 and 1: the mean is (3/4, 1/4), with H = 2 - 3/4 log2(3); inside the classes there is none.
    # An unweighted mean over classes would give the same here, so the second class gets both experts: its 1 bit
    # counts a quarter, and the mean is (7/8, 1/8).
    seven = -(7 / 8) * math.log2(7 / 8) - (1 / 8) * math.log2(1 / 8)
    found = statistics.mutual_information(torch.tensor([3, 1, 0]), tensor([3.0, 0.0], [0.5, 0.5], [0.0, 0.0]))
    assert found == pytest.approx(seven - 0.25)


def test_an_expert_is_dead_below_a_tenth_of_an_equal_share():
    # Four experts: an equal share is 0.25, a tenth of it 0.025
    assert statistics.dead_experts(tensor(0.9, 0.024, 0.025, 0.5)) == (1,)


def test_the_scales_of_quantized_experts_count():
    layer = CondConv2d(4, 8, 3, num_experts=3)
    with torch.no_grad():
        layer.weight[:, :4] *= 100  # int8 experts have a scale for each output
    before = expert_similarity([layer])
    layer.experts = layer.experts.quantize(torch.int8)
    assert torch.allclose(expert_similarity([layer]), before, atol=0.01)


@pytest.mark.parametrize("scale", [1e-36, 1e25, 1e37])
def test_the_similarity_of_kernels_whose_squares_have_no_float(scale):
    layer = CondConv2d(4, 8, 3, num_experts=3)
    before = expert_similarity([layer])
    with torch.no_grad():
        layer.weight[1] *= scale
    assert torch.allclose(expert_similarity([layer]), before, atol=1e-5)


def test_similarity_is_the_lowest_over_the_layers():
    first, second = (CondConv2d(1, 1, (1, 2), num_experts=3) for _ in range(2))
    with torch.no_grad():
        # Angles between the experts: 0 and 90 degrees, and a kernel of zeros in the first layer.
        first.weight.copy_(torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 0.0]]).reshape(3, 1, 1, 1, 2))
        second.weight.copy_(torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 2.0]]).reshape(3, 1, 1, 1, 2))
    assert duplicate_experts(expert_similarity([first])) == ((0, 1),)
    similarity = expert_similarity([first, second])
    # 45 degrees in the second layer; the zeros give 0, and 0 with themselves too
    assert similarity[0, 1].item() == pytest.approx(math.sqrt(0.5))
    assert similarity[2].tolist() == [0, 0, 0]
    assert duplicate_experts(similarity) == ()
