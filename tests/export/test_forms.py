import pytest
import torch
from torch import nn

from condconv.export.choose import FORMS, why_not_form
from condconv.export.rewrite import rewrite
from condconv.nn import CondConv2d, fold_batch_norm
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


@pytest.mark.parametrize("experts", ["dense", "deltas"])
def test_a_learned_constant_makes_an_ordinary_layer(experts):
    layer = CondConv2d(6, 10, 3, num_experts=3, routing="constant(learn=True)", experts=experts)
    nn.init.normal_(layer.routing_fn.weights)
    network, x = nn.Sequential(layer, nn.BatchNorm2d(10)).eval(), torch.randn(2, 6, 7, 7)
    rewritten, choices = rewrite(network, "onnx", x)
    assert [choice.form for choice in choices] == ["static"]
    assert any(isinstance(module, nn.Conv2d) for module in rewritten.modules())
    torch.testing.assert_close(rewritten(x), network(x), rtol=1e-4, atol=1e-5)
