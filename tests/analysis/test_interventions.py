import pytest
import torch
from torch import nn

from condconv.analysis import RoutingReport, changed_routing, keep_top, measure_interventions, measure_static
from condconv.errors import UsageError
from tests.analysis.samples import classifier, layer, recorded, routed_block

# Cats have weights (0.9, 0.2), dogs (0.2, 0.8); two of each by turns. The network says the class of the larger weight.
INPUTS = torch.tensor([[0.9, 0.2], [0.2, 0.8], [0.9, 0.2], [0.2, 0.8]])
TARGETS = torch.tensor([0, 1, 0, 1])
CLASSES = ("cat", "dog")


def by_name(interventions):
    return {(each.name, each.routings): each for each in interventions}


def test_each_intervention_does_what_is_known_of_it():
    network = classifier()
    report = recorded(network, INPUTS, TARGETS, CLASSES)
    found = by_name(measure_interventions(network, [(INPUTS, TARGETS)], report))
    assert list(found) == [("learned", ()), ("mean", ()), ("shuffled", ()), ("top-1", ()), ("mean", ("0.routing_fn",))]
    assert found["learned", ()].top1 == 1
    # The mean is (0.55, 0.5): all are called cats, so the dogs are lost.
    mean = found["mean", ()]
    assert (mean.images, mean.right, mean.agree, mean.gained, mean.lost) == (4, 2, 2, 0, 2)
    assert mean.cost == 50
    assert mean.cost_error == pytest.approx(100 * 2**0.5 / 4)
    # Each gets the weights of the other class.
    assert (found["shuffled", ()].right, found["shuffled", ()].lost) == (0, 4)
    # The largest weight alone decides already.
    assert (found["top-1", ()].right, found["top-1", ()].agree) == (4, 4)
    assert found["mean", ("0.routing_fn",)].right == 2


def test_gains_are_counted_beside_losses():
    network = classifier()
    # Labels the other way round for the dogs: all are cats, and the mean calls all cats.
    found = by_name(
        measure_interventions(
            network, [(INPUTS, torch.zeros(4, dtype=torch.long))], recorded(network, INPUTS, TARGETS, CLASSES)
        )
    )
    mean = found["mean", ()]
    assert (mean.right, mean.gained, mean.lost, mean.cost) == (4, 2, 0, -50)


def test_unreadable_images_do_not_count_and_single_layers_stop_early():
    network = classifier()
    report = recorded(network, INPUTS, TARGETS, CLASSES)
    spoiled = (torch.cat([INPUTS, INPUTS[:1]]), torch.tensor([0, 1, 0, 1, -100]))
    lost = (INPUTS[:1], torch.tensor([-100]))
    found = by_name(measure_interventions(network, [spoiled, lost, spoiled], report, layer_images=5))
    assert found["mean", ()].images == 8
    assert found["mean", ("0.routing_fn",)].images == 5
    # the first four as above, the fifth is a cat
    assert found["mean", ("0.routing_fn",)].right == 3
    with pytest.raises(UsageError, match="`batches` must hold a readable image"):
        measure_interventions(network, [lost], report)


def test_without_classes_the_predictions_are_compared():
    network = classifier()
    report = recorded(network, INPUTS)
    found = by_name(measure_interventions(network, [(INPUTS, torch.zeros(4, dtype=torch.long))], report))
    mean = found["mean", ()]
    assert (mean.right, mean.top1, mean.agreement, mean.cost) == (None, None, 0.5, 50)


def test_only_the_named_routing_is_changed():
    network = nn.Sequential(layer(), classifier())
    with torch.no_grad():  # each expert of the first layer is half the identity: weights of sum 2 pass the input on
        network[0].weight.copy_(torch.eye(2).expand(2, 2, 2) / 2)
        network[0].bias.zero_()
    inputs = torch.tensor([[1.5, 0.5], [0.5, 1.5]])
    report = recorded(network, inputs, torch.tensor([0, 1]), CLASSES)
    # The mean of the first layer is (1, 1), of sum 2 like every input's: nothing changes. That of the second is
    # (1, 1) too: all logits are alike, and the first class is said.
    first, second = (record.name for record in report.routings)
    batches = [(inputs, torch.tensor([0, 1]))]
    assert measure_static(network, batches, report, [first]).right == 2
    assert measure_static(network, batches, report, [second]).right == 1
    both = measure_static(network, batches, report, [first, second])
    assert (both.right, both.routings) == (1, (first, second))


def test_changes_reach_all_layers_of_a_block_and_end_with_the_block():
    block = routed_block()
    x = torch.rand(3, 2)
    before = block(x)
    seen = []

    def change(name, weights):
        seen.append(name)
        return weights * 0

    with changed_routing(block, change):
        assert torch.equal(block(x), torch.zeros(3, 2))  # no expert, no bias either
    assert seen == ["routing_fn"]
    assert torch.equal(block(x), before)


def test_compiled_networks_see_the_change_too():
    torch._dynamo.reset()
    block = routed_block()
    x = torch.rand(3, 2)
    before = block(x)
    block.compile(backend="aot_eager")
    assert torch.allclose(block(x), before)
    with changed_routing(block, lambda name, weights: weights * 0):
        assert torch.equal(block(x), torch.zeros(3, 2))
    assert torch.allclose(block(x), before)


def test_an_unknown_routing_is_refused():
    unknown = changed_routing(classifier(), lambda name, weights: weights, ["x"])
    with pytest.raises(UsageError, match="`routings` must name routing functions, got 'x': there are 0.rout"), unknown:
        pass
    with pytest.raises(UsageError, match="`name` must be a conditional layer or a routing function, got 'x'"):
        RoutingReport(()).routing("x")


def test_keeping_the_top_keeps_the_sum():
    weights = torch.tensor([[0.5, 0.3, 0.2], [0.0, 0.0, 0.0], [0.1, 0.4, 0.1]])
    # 0.5 and 0.3 become parts of 1: 0.625, 0.375; nothing stays nothing; the first of equals is kept.
    kept = keep_top(weights, 2)
    assert kept[0].tolist() == pytest.approx([0.625, 0.375, 0])
    assert kept[1].tolist() == [0, 0, 0]
    assert kept.sum(1).tolist() == pytest.approx([1, 0, 0.6])
    assert (kept > 0).sum(1).tolist() == [2, 0, 2]


def test_one_image_has_none_to_change_weights_with():
    network = classifier()
    report = recorded(network, INPUTS, TARGETS)
    alone = [(INPUTS[index : index + 1], TARGETS[index : index + 1]) for index in range(len(INPUTS))]
    assert "shuffled" not in by_name(measure_interventions(network, alone, report))
    three = [(INPUTS[:2], TARGETS[:2]), (INPUTS[2:3], TARGETS[2:3])]
    found = by_name(measure_interventions(network, three, report))
    assert (found["shuffled", ()].images, found["learned", ()].images) == (2, 3)


def test_the_network_as_it_is_runs_once_a_batch():
    network = classifier()
    report = recorded(network, INPUTS, TARGETS, CLASSES)
    runs: list[None] = []
    network.register_forward_hook(lambda *arguments: runs.append(None))
    found = measure_interventions(network, [(INPUTS, TARGETS)], report)
    assert len(runs) == len(found) == 5  # "learned" is the unchanged network itself


def test_a_network_that_is_no_classifier():
    network = nn.Sequential(layer())
    report = recorded(network, torch.ones(2, 2), torch.tensor([0, 0]))
    with pytest.raises(UsageError, match=r"`network` must give one number per class, \[B, classes\]"):
        measure_interventions(
            nn.Sequential(*network, nn.Unflatten(1, (-1, 1))), [(torch.ones(2, 2), TARGETS[:2])], report
        )
