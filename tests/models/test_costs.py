import pytest
import torch

from condconv import count, create_model, list_models
from condconv.models.costs import COSTS, Cost
from condconv.models.names import parse_name


def counted(name: str) -> Cost:
    family = parse_name(name).family
    with torch.device("meta"):
        image = torch.zeros(1, 3, family.image_size, family.image_size)
        total = count(create_model(name, num_classes=family.num_classes), image).total
    return Cost(total.params, total.madds)


def test_every_listed_network_has_its_cost() -> None:
    assert list(COSTS) == list_models()


@pytest.mark.parametrize("name", ["mobilenet_v1_025", "mobilenet_v1_cc_025_2e", "small_dense_cc_100_8e"])
def test_costs_are_what_is_counted(name: str) -> None:
    assert counted(name) == COSTS[name]


@pytest.mark.slow
def test_all_costs_are_what_is_counted() -> None:
    assert {name: counted(name) for name in COSTS} == COSTS
