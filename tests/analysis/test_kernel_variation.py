"""How much the kernels of images differ, by numbers worked by hand and by the kernels themselves."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from condconv.analysis import RoutingReport, headline, render_page, summarize
from condconv.analysis.experts import kernel_products
from condconv.analysis.statistics import kernel_variation
from condconv.errors import UsageError
from condconv.nn import CondConv2d, CondLinear
from tests.analysis.samples import Block, FirstTwo, layer, recorded, routed_block
from tests.analysis.test_page import content


def of(kernels: list[list[float]], experts: str = "dense") -> nn.Sequential:
    """Return a layer of two experts with kernels of two numbers, W0 first if they share one."""
    made = CondLinear(2, 1, bias=False, num_experts=2, routing=FirstTwo(), experts=experts)
    with torch.no_grad():
        made.weight.copy_(torch.tensor(kernels)[:, None])
    return nn.Sequential(made)


def variation(network: nn.Module, weights: list[list[float]]) -> float | None:
    return recorded(network, torch.tensor(weights)).routings[0].kernel_variation


def test_whole_kernels_worked_by_hand() -> None:
    # Kernels (1, 0) and (0, 2), mean (0.5, 1): squares 1 and 4, on average 2.5, of which the mean's are 1.25.
    assert variation(of([[1.0, 0.0], [0.0, 2.0]]), [[1.0, 0.0], [0.0, 1.0]]) == pytest.approx(0.5**0.5)
    # Experts at right angles and of one size: as much as the weights, (0.4, 0.6) and (0.6, 0.4), 0.01 of 0.26.
    even = of([[5.0, 0.0], [0.0, 5.0]])
    report = recorded(even, torch.tensor([[0.4, 0.6], [0.6, 0.4]]))
    assert report.routings[0].kernel_variation == pytest.approx((0.01 / 0.26) ** 0.5)
    assert report.routings[0].kernel_variation == pytest.approx(report.routings[0].variation)


@pytest.mark.parametrize("size", [1.0, 0.01])
def test_differences_count_by_their_size_next_to_the_shared_kernel(size: float) -> None:
    network = of([[3.0, 4.0], [size, 0.0], [0.0, size]], "deltas")
    # W0 = (3, 4) and a difference along the first number, from -0.5 to 0.5 of it: 0.25 size^2 next to 25.
    record = recorded(network, torch.tensor([[0.0, 0.5], [1.0, 0.5]])).routings[0]
    assert record.kernel_variation == pytest.approx((0.25 * size**2 / (25 + 0.25 * size**2)) ** 0.5, rel=1e-4)
    # What the cosine and the weights say does not depend on it.
    assert record.similarity[0, 1].item() == 0
    assert record.variation == pytest.approx((0.25 / 0.75) ** 0.5)


def test_differences_along_one_line_make_kernels_differ() -> None:
    record = recorded(of([[3.0, 4.0], [1.0, 0.0], [1.0, 0.0]], "deltas"), torch.tensor([[0.0, 0.0], [1.0, 1.0]]))
    # (2, 4) and (4, 4): 1 next to 25, though one difference is a copy of the other.
    assert record.routings[0].kernel_variation == pytest.approx((1 / 26) ** 0.5)
    assert record.routings[0].similarity[0, 1].item() == pytest.approx(1)


def test_kernels_that_do_not_differ() -> None:
    apart, copies = of([[1.0, 0.0], [0.0, 2.0]]), of([[0.3, 0.7], [0.3, 0.7]])
    assert variation(apart, [[0.3, 0.1]] * 3) == 0
    assert variation(of([[0.0, 0.0]] * 2), [[0.3, 0.1], [0.1, 0.3]]) == 0
    assert variation(copies, [[0.3, 0.7], [0.9, 0.1]]) == pytest.approx(0, abs=1e-3)  # the weights sum to 1
    # Kernels that cancel on average have nothing but their differences.
    assert variation(apart, [[1.0, 1.0], [-1.0, -1.0]]) == 1


@pytest.mark.parametrize("experts", ["dense", "deltas", "shared(rank=2)", "shared(outputs=2)", "shared(kernels=2)"])
@pytest.mark.parametrize("scale", [1.0, 1e-36, 1e30])
def test_every_linear_store_agrees_with_the_kernels_of_its_images(experts: str, scale: float) -> None:
    made = CondConv2d(4, 6, 3, num_experts=3, experts=experts)
    weights = torch.rand(20, 3, dtype=torch.float64)
    kernels = made.experts.mix(weights)[0].detach()
    mean = kernels.mean(0)
    expected = ((kernels - mean).square().sum() / kernels.square().sum()) ** 0.5
    with torch.no_grad():
        for name, each in made.experts.named_parameters():
            if name.rpartition(".")[2] == "weight" and name.partition(".")[0] not in ("mixing", "common"):
                each *= scale
        if "outputs" in experts:
            made.experts.get_parameter("outputs.core").mul_(scale)
    found = kernel_variation(torch.tensor(20), weights.sum(0), weights.mT @ weights, products(made))
    assert found == pytest.approx(expected.item(), rel=1e-4)


def products(made: Any) -> Tensor:
    found = kernel_products(made)
    assert found is not None
    return found


def test_quantized_experts_have_nearly_the_same() -> None:
    made = CondConv2d(4, 6, 3, num_experts=3)
    weights = torch.rand(20, 3, dtype=torch.float64)
    sums = (torch.tensor(20), weights.sum(0), weights.mT @ weights)
    before = kernel_variation(*sums, products(made))
    made.experts = made.experts.quantize(torch.int8)
    assert kernel_variation(*sums, products(made)) == pytest.approx(before, rel=0.01)


def test_small_differences_are_seen_under_autocast() -> None:
    network = of([[3.0, 4.0], [0.001, 0.0], [0.0, 0.001]], "deltas")
    plain = variation(network, [[0.0, 0.5], [1.0, 0.5]])
    with torch.autocast("cpu", torch.bfloat16):
        assert variation(network, [[0.0, 0.5], [1.0, 0.5]]) == plain


def test_layers_that_share_a_routing_have_the_mean_of_theirs() -> None:
    block: Block = routed_block()
    with torch.no_grad():
        for each, first in ((block.first, 1.0), (block.second, 0.0)):
            each.weight.copy_(torch.tensor([[[first, 0.0], [0.0, 0.0]], [[0.0, 1.0], [0.0, 0.0]]]))
    # (1, 0) and (0, 1): 0.5 of 1; (0, 0) and (0, 1): 0.25 of 0.5. Then 0.25 of 0.75, and two kernels that are the same.
    assert variation(block, [[1.0, 0.0], [0.0, 1.0]]) == pytest.approx(0.5**0.5)
    assert variation(block, [[1.0, 0.5], [0.0, 0.5]]) == pytest.approx(((0.25 / 0.75) ** 0.5 + 0) / 2)


@pytest.mark.parametrize("experts", ["shared(gains=True)", "modulated"])
def test_it_is_not_known_of_kernels_that_are_not_linear(experts: str) -> None:
    network = nn.Sequential(CondLinear(2, 3, num_experts=2, experts=experts))
    report = recorded(network, torch.rand(5, 2))
    assert report.routings[0].kernel_variation is None
    found = summarize(report)
    assert found is not None
    assert found.kernel_variation is None
    assert "kernels by" not in found.numbers
    page = content(render_page(report))
    assert "kernels" not in page["charts"]
    assert page["layers"][0]["kernels"] is None


def test_the_page_and_the_sentence_show_it() -> None:
    report = recorded(nn.Sequential(layer(), layer()), torch.tensor([[0.4, 0.6], [0.6, 0.4]]))
    known = replace(report.routings[0], kernel_variation=0.0625)
    report = replace(report, routings=(known, replace(report.routings[1], kernel_variation=None)))
    assert "over images, kernels by 6.2 %, " in headline(report)  # of those that are known
    found = content(render_page(report))
    assert found["charts"]["kernels"]["data"][0]["y"] == [6.25, None]
    assert [each["kernels"] for each in found["layers"]] == [0.0625, None]
    assert [row["kernel_variation"] for row in report.rows()] == [0.0625, None]


def test_files_may_lack_it_and_have_nothing_else_in_its_place(tmp_path: Any) -> None:
    path = tmp_path / "report.json"
    report = recorded(nn.Sequential(layer()), torch.rand(4, 2))
    report.save(path)
    text = path.read_text()
    value = report.routings[0].kernel_variation
    assert RoutingReport.load(path).routings[0].kernel_variation == value
    path.write_text(text.replace(f', "kernel_variation": {value}', ""))
    assert RoutingReport.load(path).routings[0].kernel_variation is None
    for wrong in ("1.5", "NaN", '"0"', "true"):
        path.write_text(text.replace(f'"kernel_variation": {value}', f'"kernel_variation": {wrong}'))
        with pytest.raises(UsageError, match=r"`routings\[0\].kernel_variation` must be a number from 0 to 1, got"):
            RoutingReport.load(path)
