import pytest
import torch
from torch import nn

from condconv.lab.train.averaging import create_average, update_average_
from condconv.nn import SoftmaxRouting, anneal_


def test_the_decay_rises_to_its_limit():
    """Weights 1, 2, 3, 4 after updates 1 to 4; decays 0, 1 - 2^(-2/3) = 0.370, then the limit 0.5 twice.

    1 - 3^(-2/3) = 0.519 is above the limit. So 1; 0.370 + 0.630 * 2 = 1.630; 2.315; 3.157.
    """
    network = nn.Linear(1, 1, bias=False)
    average = create_average(network, 0.5)
    seen = []
    for update in (1, 2, 3, 4):
        nn.init.constant_(network.weight, float(update))
        update_average_(average, network, update)
        seen.append(average.module.weight.item())
    assert seen == pytest.approx([1.0, 1.63, 2.315, 3.1575], abs=1e-3)


def test_statistics_are_averaged_and_a_temperature_is_taken_as_it_is():
    norm, routing = nn.BatchNorm2d(1), SoftmaxRouting(1, 2, temperature=9.0, final_temperature=1.0, annealing_steps=4)
    network = nn.ModuleList([norm, routing])
    average = create_average(network, 0.5)
    for update in (1, 2, 3):
        anneal_(network)
        norm.running_mean.fill_(float(update))
        norm.num_batches_tracked.fill_(update)
        update_average_(average, network, update)
    averaged_norm, averaged_routing = average.module
    assert averaged_routing.temperature == routing.temperature == 3.0
    assert averaged_norm.num_batches_tracked == 3
    assert averaged_norm.running_mean.item() == pytest.approx(2.315, abs=1e-3)  # as in the test above
    assert not torch.equal(averaged_norm.running_mean, norm.running_mean)
