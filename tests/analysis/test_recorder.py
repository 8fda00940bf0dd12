import math

import pytest
import torch
from torch import nn

from condconv.analysis import RoutingRecorder
from condconv.errors import UsageError
from condconv.nn import (
    ConstantRouting,
    HierarchicalRouting,
    RoutingSlot,
    SigmoidRouting,
    SoftmaxRouting,
    TopKRouting,
    route_block_,
)
from tests.analysis.samples import CLASSES, Block, FirstTwo, layer, recorded, routed_block


def test_statistics_worked_by_hand_over_two_batches():
    network = nn.Sequential(layer())
    with RoutingRecorder(network, CLASSES) as recorder:
        network(torch.tensor([[0.0, 1.0], [0.5, 0.5]]))
        recorder.update(torch.tensor([0, 1]))
        network(torch.tensor([[1.0, 1.0], [0.25, 0.0], [9.0, 9.0]]))
        recorder.update(torch.tensor([0, 0, -100]))  # the last one could not be read
    (record,) = recorder.report().routings
    # cat: weights (0, 1), (1, 1), (0.25, 0): means 1.25 / 3 and 2 / 3
    assert record.class_examples.tolist() == [3, 1, 0]
    assert record.class_mean[0].tolist() == pytest.approx([1.25 / 3, 2 / 3])
    assert record.class_mean[1].tolist() == [0.5, 0.5]
    assert record.class_mean[2].isnan().all()
    first = math.sqrt((0 + 1 + 0.0625) / 3 - (1.25 / 3) ** 2)
    assert record.class_std[0].tolist() == pytest.approx([first, math.sqrt(2 / 3 - 4 / 9)])
    assert record.class_std[1].tolist() == [0, 0]
    # All: (0 + 0.5 + 1 + 0.25) / 4 and (1 + 0.5 + 1 + 0) / 4
    assert int(record.examples) == 4
    assert record.mean.tolist() == pytest.approx([1.75 / 4, 2.5 / 4])
    # Shares (0, 1), (1/2, 1/2), (1/2, 1/2), (1, 0): entropies 0, 1, 1, 0 bits; the mean shares are a half each
    assert record.entropy == pytest.approx(0.5)
    assert record.experts_per_example == pytest.approx(math.sqrt(2))
    assert record.experts_in_all == pytest.approx(2)
    assert record.highest_shares.tolist() == [1, 1]
    assert int(record.outside) == 0
    # 0, 1, 1, 1, 0 are at the ends of 0..1, and 0.5, 0.5, 0.25 are not
    assert record.bimodality == pytest.approx(5 / 8)


def test_sums_of_batches_are_those_of_all_examples_at_once():
    network = nn.Sequential(layer(SigmoidRouting(2, 2)))
    inputs, targets = torch.randn(50, 2), torch.arange(50) % 3
    whole = recorded(network, inputs, targets).routings[0]
    with RoutingRecorder(network, CLASSES) as recorder:
        for start in range(0, 50, 7):
            network(inputs[start : start + 7])
            recorder.update(targets[start : start + 7])
    parts = recorder.report().routings[0]
    weights = network[0].routing_fn(inputs).double().detach()
    assert torch.allclose(whole.class_sums[1], weights[targets == 1].sum(0))
    for name in ("class_sums", "class_squares", "class_share_sums", "entropy_sum", "histogram", "top_ids"):
        assert torch.allclose(getattr(parts, name), getattr(whole, name)), name
    assert whole.top_ids[0].tolist() == weights[:, 0].argsort(descending=True)[:10].tolist()
    assert torch.equal(whole.top_weights[1], weights[:, 1].sort(descending=True).values[:10])


def test_numbers_of_the_highest_weights_are_given_or_counted():
    network = nn.Sequential(layer())
    with RoutingRecorder(network, top_examples=2) as recorder:
        network(torch.tensor([[0.1, 0.5], [0.9, 0.5]]))
        recorder.update(ids=torch.tensor([40, 41]))
        network(torch.tensor([[0.5, 0.5], [0.6, 0.9]]))
        recorder.update()
    (record,) = recorder.report().routings
    # The second batch is counted on from the first: 2 and 3. Equal weights keep the order in which they came.
    assert record.top_ids.tolist() == [[41, 3], [3, 40]]
    assert record.top_weights.tolist() == [pytest.approx([0.9, 0.6]), pytest.approx([0.9, 0.5])]


def test_an_unreadable_image_does_not_shift_the_numbers():
    network = nn.Sequential(layer())
    with RoutingRecorder(network, CLASSES, top_examples=2) as recorder:
        network(torch.tensor([[0.9, 0.9], [0.5, 0.1], [0.1, 0.5]]))
        recorder.update(torch.tensor([-100, 0, 1]))
    assert recorder.report().routings[0].top_ids.tolist() == [[1, 2], [2, 1]]


def test_of_equal_weights_the_first_are_remembered():
    (record,) = recorded(nn.Sequential(layer()), torch.full((200, 2), 0.5), top_examples=4).routings
    assert record.top_ids.tolist() == [[0, 1, 2, 3]] * 2


def test_fewer_examples_than_are_remembered():
    (record,) = recorded(nn.Sequential(layer()), torch.rand(3, 2)).routings
    assert record.top_ids.shape == (2, 3)


def test_examples_without_classes_have_no_class_statistics():
    (record,) = recorded(nn.Sequential(layer()), torch.rand(4, 2)).routings
    assert record.class_sums.shape == (0, 2)
    assert record.between_class_share is None
    assert record.mutual_information is None
    assert int(record.examples) == 4
    with RoutingRecorder(network := nn.Sequential(layer())) as recorder:
        network(torch.rand(2, 2))
        recorder.update(torch.tensor([0, -100]))  # here the sign says which could be read
    assert int(recorder.report().routings[0].examples) == 1


def test_layers_are_named_in_the_order_of_the_network():
    report = recorded(nn.Sequential(nn.Identity(), layer(), nn.Sequential(layer())), torch.rand(1, 2))
    assert [record.layers for record in report.routings] == [("1",), ("2.0",)]
    assert [record.name for record in report.routings] == ["1.routing_fn", "2.0.routing_fn"]
    assert report.routings[0].kind == "FirstTwo"


def test_a_routing_that_layers_share_is_recorded_once():
    report = recorded(routed_block(), torch.tensor([[0.25, 0.75]]), torch.tensor([1]))
    (record,) = report.routings
    assert (record.name, record.layers) == ("routing_fn", ("first", "second"))
    assert record.class_mean[1].tolist() == [0.25, 0.75]
    assert record.class_examples.tolist() == [0, 1, 0]


def test_a_chain_of_routings_is_recorded_link_by_link():
    first, second = Block(), Block()
    handed = RoutingSlot("first", 2)
    route_block_(first, HierarchicalRouting(2, 2), [first.first, first.second], slot=handed, hand_over=True)
    chained = HierarchicalRouting(2, 2, previous_experts=2)
    route_block_(second, chained, [second.first, second.second], previous=handed)
    report = recorded(nn.Sequential(first, second), torch.rand(5, 2))
    assert [record.layers for record in report.routings] == [("0.first", "0.second"), ("1.first", "1.second")]
    assert [int(record.examples) for record in report.routings] == [5, 5]


def test_constant_routing_has_no_variance_and_tells_nothing():
    network = nn.Sequential(layer(ConstantRouting(2, 2, weights=[1 / 3, 2 / 3])))
    (record,) = recorded(network, torch.rand(60, 2), torch.arange(60) % 3).routings
    assert record.between_class_share == 0
    assert record.mutual_information == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("routing", [SoftmaxRouting(2, 2), TopKRouting(2, 2, k=1)])
def test_weights_that_sum_to_one(routing):
    (record,) = recorded(nn.Sequential(layer(routing)), torch.randn(9, 2)).routings
    assert float(record.share_sums.sum()) == pytest.approx(9)
    assert float(record.weight_sums.sum()) == pytest.approx(9)
    if isinstance(routing, TopKRouting):
        assert record.experts_per_example == 1


def test_weights_outside_0_to_1_are_counted():
    (record,) = recorded(nn.Sequential(layer()), torch.tensor([[-0.5, 1.5], [0.5, 1.0]])).routings
    assert int(record.outside) == 2


def test_the_hooks_are_gone_after_the_block_even_after_an_error():
    conditional = layer()
    network, hooks = nn.Sequential(conditional), conditional.routing_fn._forward_hooks
    recorder = RoutingRecorder(network, CLASSES)
    assert len(hooks) == 0
    with recorder:
        assert len(hooks) == 1
    assert len(hooks) == 0
    with pytest.raises(RuntimeError, match="size of tensor"), recorder:
        network(torch.ones(2, 3) + torch.ones(2, 2))
    assert len(hooks) == 0


def test_a_forgotten_update_is_noticed():
    network = nn.Sequential(layer())
    with RoutingRecorder(network, CLASSES) as recorder:
        network(torch.ones(2, 2))
        network(torch.ones(3, 2))
        with pytest.raises(UsageError, match="`update` must be called once after each forward pass, got 2 passes"):
            recorder.update(torch.tensor([0, 0, 0]))


def test_an_update_without_a_forward_pass_is_refused():
    with RoutingRecorder(nn.Sequential(layer()), CLASSES) as recorder:
        with pytest.raises(UsageError, match="`network` must run before update is called"):
            recorder.update(torch.tensor([0]))
        with pytest.raises(UsageError, match="must see an example first"):
            recorder.report()


@pytest.mark.parametrize(
    ("targets", "ids", "message"),
    [
        (None, None, "`targets` must be given with class names, got None"),
        (torch.tensor([0, 3]), None, "`targets` must lie below the number of classes, 3, got 3"),
        (torch.tensor([0, 1]), torch.tensor([1]), r"`ids` must have shape \[B\] = \(2,\), got \(1,\)"),
        (torch.tensor([0, 1]), torch.tensor([1.0, 2.0]), r"`ids` must be a tensor \[B\] of whole .* got torch.float32"),
        (
            torch.tensor([0, 1, 2]),
            None,
            "`targets` must have one class for each example of one forward pass, got 3 for",
        ),
        (
            torch.tensor([0.0, 1.0]),
            None,
            r"`targets` must be a tensor \[B\] of whole numbers, got torch.float32 of shape \(2,\): give the class of",
        ),
        (torch.eye(3)[:2], None, r"got torch.float32 of shape \(2, 3\): .* one-hot rows targets.argmax\(1\); .* mixup"),
        (torch.eye(3).long()[:2], None, r"got torch.int64 of shape \(2, 3\)"),
        (torch.tensor(1), None, r"got torch.int64 of shape \(\)"),
        (torch.tensor([True, False]), None, "got torch.bool of shape"),
        ([0, 1], None, r"`targets` must be a tensor \[B\] of whole numbers, got list: give a tensor"),
    ],
)
def test_wrong_updates_are_refused(targets, ids, message):
    network = nn.Sequential(layer())
    with RoutingRecorder(network, CLASSES) as recorder:
        network(torch.ones(2, 2))
        with pytest.raises(UsageError, match=message):
            recorder.update(targets, ids)
        recorder.update(torch.tensor([0, -1]))  # the pass is still there, and a right call takes it
    assert recorder.report().routings[0].class_examples.tolist() == [1, 0, 0]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_whole_numbers_of_any_width(dtype):
    (record,) = recorded(nn.Sequential(layer()), torch.rand(3, 2), torch.tensor([0, 2, 2], dtype=dtype)).routings
    assert record.class_examples.tolist() == [1, 0, 2]


def test_a_static_network_and_no_classes_are_refused():
    with pytest.raises(UsageError, match="`network` must have a conditional layer, got Sequential without one"):
        RoutingRecorder(nn.Sequential(nn.Conv2d(1, 1, 1)), CLASSES)
    with pytest.raises(UsageError, match="`class_names` must name at least one class"):
        RoutingRecorder(nn.Sequential(layer()), ())
    with pytest.raises(UsageError, match="`top_examples` must be a whole number of at least 0, got -1"):
        RoutingRecorder(nn.Sequential(layer()), CLASSES, -1)


def test_one_routing_function_in_two_layers_counts_each_time_it_runs():
    shared = FirstTwo()
    report = recorded(nn.Sequential(layer(shared), layer(shared)), torch.rand(3, 2))
    (record,) = report.routings
    assert record.layers == ("0", "1")
    assert int(record.examples) == 6


def test_a_pass_that_fails_leaves_nothing():
    network = nn.Sequential(layer(), nn.Linear(4, 4))
    with RoutingRecorder(network, CLASSES) as recorder:
        with pytest.raises(RuntimeError, match="shape"):
            network(torch.ones(5, 2))  # the second layer takes other channels
        network[1] = nn.Identity()
        network(torch.ones(2, 2))
        recorder.update(torch.tensor([0, 0]))
    assert recorder.report().routings[0].examples.sum() == 2


def test_what_an_earlier_block_left_is_forgotten():
    network = nn.Sequential(layer())
    recorder = RoutingRecorder(network, CLASSES)
    with recorder:
        network(torch.ones(3, 2))
    with recorder:
        with pytest.raises(UsageError, match="entered once at a time"), recorder:
            pass
        network(torch.ones(2, 2))
        recorder.update(torch.tensor([0, 0]))
    assert recorder.report().routings[0].examples.sum() == 2


def test_a_network_that_has_diverged_is_named():
    network = nn.Sequential(layer())
    with RoutingRecorder(network, CLASSES) as recorder:
        network(torch.full((2, 2), float("nan")))
        with pytest.raises(
            UsageError, match="`network` must give finite routing weights, got others in '0.routing_fn'"
        ):
            recorder.update(torch.tensor([0, 0]))


def test_a_part_without_the_block_that_routes_it_is_refused():
    with pytest.raises(UsageError, match=r"`model` must hold the block that routes its layers, got a part without it"):
        RoutingRecorder(nn.Sequential(routed_block().first))
