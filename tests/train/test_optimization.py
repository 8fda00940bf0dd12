import pytest
import torch
from torch import nn

from condconv.nn import CondConv2d
from condconv.train.optimization import create_optimizer, create_scheduler
from tests.train.samples import settings


def test_kernels_decay_and_biases_and_norms_do_not(tmp_path):
    network = nn.Sequential(CondConv2d(2, 3, 3, num_experts=2), nn.BatchNorm2d(3))
    optimizer = create_optimizer(settings(tmp_path, weight_decay=0.1), network)
    decay = {id(each): group["weight_decay"] for group in optimizer.param_groups for each in group["params"]}
    kernels = {name for name, each in network.named_parameters() if decay[id(each)] == 0.1}
    assert kernels == {"0.weight", "0.routing_fn.fc.weight"}
    assert sum(value == 0 for value in decay.values()) == 4  # the experts', the routing's and the norm's two


def test_the_rate_warms_up_and_follows_half_a_cosine(tmp_path):
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1.0)
    scheduler = create_scheduler(settings(tmp_path, lr=1.0, epochs=5, warmup_epochs=1), optimizer, 10)
    rates = [optimizer.param_groups[0]["lr"]]
    for update in range(1, 51):
        scheduler.step_update(update)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates[0] == pytest.approx(0.01)
    assert rates[9] < rates[10] == pytest.approx((1 + torch.tensor(0.2 * torch.pi).cos().item()) / 2)
    assert rates[25] == pytest.approx(0.5)
    assert rates[50] == 0
