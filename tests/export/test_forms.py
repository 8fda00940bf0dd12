import pytest
import torch
from torch import nn

from condconv.export.choose import FORMS, why_not_form
from condconv.nn import fold_batch_norm
from tests.export.cases import LAYERS, layer_case

FITTING = [
    (name, form) for name, (make, _) in LAYERS.items() for form in FORMS if why_not_form(form, make(), batch=2) is None
]


@pytest.mark.parametrize(("name", "form"), FITTING)
def test_a_form_computes_what_the_layer_does(name, form):
    network, example = layer_case(name)
    layer = network[0].double()
    if isinstance(network[1], nn.BatchNorm2d):
        layer = fold_batch_norm(layer, network[1].double())  # so that it has a shift
    formed = FORMS[form](layer)
    for batch in (1, 2, 3):
        x = torch.randn(batch, *example.shape[1:], dtype=torch.float64)
        weights = torch.rand(batch, layer.num_experts, dtype=torch.float64) - 0.3
        torch.testing.assert_close(formed(x, weights), layer(x, weights))
