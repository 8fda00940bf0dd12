"""Routing shared by a block survives what models go through, and never uses stale weights."""

from __future__ import annotations

import copy
import io
import os
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint

from condconv import CondConv2d
from condconv.errors import UsageError
from condconv.nn import HierarchicalRouting, RoutingSlot, SigmoidRouting, SoftmaxRouting, route_block_
from condconv.nn.block_routing import routing_functions


class Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = CondConv2d(
            channels, channels, 3, padding=1, groups=channels, num_experts=3, routing="external"
        )
        self.norm = nn.BatchNorm2d(channels)
        self.pointwise = CondConv2d(channels, channels, 1, num_experts=3, routing="external")

    def forward(self, x: Tensor) -> Tensor:
        return x + self.pointwise(torch.relu(self.norm(self.depthwise(x))))


class Net(nn.Module):
    """Two blocks with a routing each."""

    def __init__(self, checkpointing: bool = False) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.blocks = nn.ModuleList([Block(6), Block(6)])
        for block in self.blocks:
            route_block_(block, SigmoidRouting(6, 3), [block.depthwise, block.pointwise])
        self.checkpointing = checkpointing

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.checkpointing else block(x)
        return x.mean((2, 3))


def gradients(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    model(x).square().sum().backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def test_all_layers_use_the_weights_of_the_blocks_input() -> None:
    block = Block(6).eval()
    routing = SigmoidRouting(6, 3)
    route_block_(block, routing, [block.depthwise, block.pointwise])
    x = torch.randn(2, 6, 5, 5)
    weights = routing(x)
    hidden = torch.relu(block.norm(block.depthwise(x, weights)))
    torch.testing.assert_close(block(x), x + block.pointwise(hidden, weights))
    torch.testing.assert_close(block(x=x), block(x))


def test_the_routing_function_has_one_name_in_the_state_dict() -> None:
    names = [name for name in Net().state_dict() if "routing" in name]
    assert names == [f"blocks.{i}.routing_fn.fc.{part}" for i in (0, 1) for part in ("weight", "bias")]


def test_a_layer_outside_its_running_block_says_so() -> None:
    block = Net().blocks[0]
    x = torch.randn(2, 6, 5, 5)
    block(x)
    with pytest.raises(
        UsageError, match="`routing_weights` must come from its Block, which is not running, got None: "
    ):
        block.pointwise(x)


def test_the_slot_is_emptied_when_the_block_fails() -> None:
    block = Block(6)
    routed = route_block_(block, SigmoidRouting(6, 3), [block.depthwise, block.pointwise])
    block.norm = nn.Linear(1, 1)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        block(torch.randn(2, 6, 5, 5))
    with pytest.raises(UsageError, match="not running"):
        routed.slot(torch.randn(2, 6, 5, 5))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_are_independent(duplicate) -> None:
    model = Net().eval()
    twin = duplicate(model)
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(twin(x), model(x), rtol=0, atol=0)
    slots = {id(module) for net in (model, twin) for module in net.modules() if isinstance(module, RoutingSlot)}
    assert len(slots) == 4
    with torch.no_grad():
        twin.blocks[0].routing_fn.fc.bias += 1
    assert not torch.equal(twin(x), model(x))
    twin.blocks[0].routing_fn.load_state_dict(model.blocks[0].routing_fn.state_dict())
    torch.testing.assert_close(twin(x), model(x), rtol=0, atol=0)


def test_torch_save_of_a_whole_model() -> None:
    model, buffer = Net().eval(), io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False)
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(loaded(x), model(x), rtol=0, atol=0)


def test_activation_checkpointing_gives_the_same_gradients() -> None:
    plain, x = Net(), torch.randn(4, 3, 8, 8)
    checkpointed = Net(checkpointing=True)
    checkpointed.load_state_dict(plain.state_dict())
    expected = gradients(plain, x)
    torch.testing.assert_close(gradients(checkpointed, x), expected)


def test_two_forwards_before_one_backward_with_checkpointing() -> None:
    """The recomputation of the first forward must not see the weights of the second."""
    plain = Net()
    checkpointed = Net(checkpointing=True)
    checkpointed.load_state_dict(plain.state_dict())
    first, second = torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8)
    grads = []
    for model in (plain, checkpointed):
        model.eval()
        (model(first).sum() - 2 * model(second).square().sum()).backward()
        grads.append({name: parameter.grad for name, parameter in model.named_parameters()})
    torch.testing.assert_close(grads[0], grads[1])


def test_checkpointing_a_part_of_a_block_is_refused_not_wrong() -> None:
    block = Block(6)
    route_block_(block, SigmoidRouting(6, 3), [block.depthwise, block.pointwise])
    block.forward = lambda x: checkpoint(block.pointwise, x, use_reentrant=False)
    y = block(torch.randn(2, 6, 5, 5, requires_grad=True))
    with pytest.raises(UsageError, match="with activation checkpointing, checkpoint a module that contains it"):
        y.sum().backward()


@pytest.mark.parametrize("grad", [False, True])
def test_compiles_to_one_graph_for_all_batches(grad: bool) -> None:
    torch._dynamo.reset()
    model = Net().eval()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    with torch.set_grad_enabled(grad):
        for batch in (5, 9, 7):
            x = torch.randn(batch, 3, 12, 11)
            torch._dynamo.mark_dynamic(x, 0)
            torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-5)
    assert counter.frame_count == 1


# Strict export points out that the slot is filled and emptied; what counts is that the program is right.
@pytest.mark.filterwarnings("ignore:While compiling, we found certain side effects")
@pytest.mark.parametrize("strict", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_exports_with_a_free_batch(strict: bool) -> None:
    model = Net().eval()
    batch = torch.export.Dim("batch")
    program = torch.export.export(model, (torch.randn(3, 3, 8, 8),), dynamic_shapes=({0: batch},), strict=strict)
    for size in (1, 2, 5):
        x = torch.randn(size, 3, 8, 8)
        torch.testing.assert_close(program.module()(x), model(x), rtol=1e-4, atol=1e-5)


def test_distributed_data_parallel(tmp_path) -> None:
    expected_model, x, address = Net(), torch.randn(4, 3, 8, 8), os.environ.get("MASTER_ADDR")
    model = copy.deepcopy(expected_model)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(model)
        wrapped(x).square().sum().backward()
        got = {name: parameter.grad for name, parameter in model.named_parameters()}
        torch.testing.assert_close(got, gradients(expected_model, x))
    finally:
        dist.destroy_process_group()
    assert os.environ.get("MASTER_ADDR") == address


def test_data_parallel_is_refused() -> None:
    slot = next(module for module in Net().modules() if isinstance(module, RoutingSlot))
    with pytest.raises(UsageError, match="use torch.nn.parallel.DistributedDataParallel"):
        slot._replicate_for_data_parallel()


def test_threads_do_not_meet() -> None:
    """A barrier inside the block makes both threads route before either uses its weights."""
    block = Block(6).eval()
    route_block_(block, SigmoidRouting(6, 3), [block.depthwise, block.pointwise])
    images = [torch.randn(2, 6, 5, 5), torch.randn(2, 6, 5, 5)]
    expected = [block(x) for x in images]
    barrier = threading.Barrier(2, timeout=30)
    block.depthwise.register_forward_pre_hook(lambda module, args: [barrier.wait(), None][1])
    with ThreadPoolExecutor(2) as pool:
        for output, wanted in zip(pool.map(block, images), expected, strict=True):
            torch.testing.assert_close(output, wanted)


@pytest.mark.slow
@torch.no_grad()
def test_parts_of_a_model_may_be_compiled() -> None:
    """What eager code puts into the slot compiled code finds there, and the other way round."""
    x = torch.randn(2, 3, 5, 5)
    for name in ("blocks.0.pointwise", "blocks.0", "stem"):
        torch._dynamo.reset()
        model = Net().eval()
        expected = model(x)
        model.get_submodule(name).compile(backend="aot_eager")
        torch.testing.assert_close(model(x), expected)
    torch._dynamo.reset()
    model = Net().eval()
    expected = model(x)
    model.blocks[0].pointwise.forward = torch.compiler.disable(model.blocks[0].pointwise.forward)
    torch.testing.assert_close(torch.compile(model, backend="aot_eager")(x), expected)


def test_threads_do_not_meet_where_a_layer_is_compiled() -> None:
    torch._dynamo.reset()
    block = Block(6).eval().requires_grad_(False)
    route_block_(block, SigmoidRouting(6, 3).requires_grad_(False), [block.depthwise, block.pointwise])
    images = [torch.randn(2, 6, 5, 5), 5 * torch.randn(2, 6, 5, 5)]
    expected = [block(x) for x in images]
    block.pointwise.compile(backend="aot_eager")  # reads what eager code filled in
    block(images[0])
    barrier = threading.Barrier(2, timeout=30)
    block.depthwise.register_forward_pre_hook(lambda module, args: [barrier.wait(), None][1])
    with ThreadPoolExecutor(2) as pool:
        for output, wanted in zip(pool.map(block, images), expected, strict=True):
            torch.testing.assert_close(output, wanted)


def test_a_copy_made_in_the_middle_of_a_forward_starts_empty() -> None:
    block = Block(6)
    route_block_(block, SigmoidRouting(6, 3), [block.depthwise, block.pointwise])
    copies = []
    block.norm.register_forward_hook(lambda module, args, output: copies.append(copy.deepcopy(block.pointwise)))
    block(torch.randn(2, 6, 5, 5))
    with pytest.raises(UsageError, match="not running"):
        copies[0](torch.randn(2, 6, 5, 5))


def test_a_copy_of_a_layer_in_its_block_reads_the_weights_of_the_block() -> None:
    """As peft's `modules_to_save` and adapters put it there."""
    model = Net().eval()
    x = torch.randn(2, 3, 8, 8)
    expected = model(x)
    for name in ("depthwise", "pointwise"):
        setattr(model.blocks[1], name, copy.deepcopy(copy.deepcopy(model.blocks[1].get_submodule(name))))
    torch.testing.assert_close(model(x), expected, rtol=0, atol=0)
    assert set(routing_functions(model).values()) == {block.routing_fn for block in model.blocks}
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.blocks[1].routing_fn.fc.bias += 2
    assert not torch.equal(twin(x), expected)  # it reads its own block's
    torch.testing.assert_close(model(x), expected, rtol=0, atol=0)
    with pytest.raises(UsageError, match=r"which is not running \(it is a copy, made without that module"):
        model.blocks[1].pointwise(torch.randn(2, 6, 5, 5))


def test_hierarchical_chain_hands_the_weights_over() -> None:
    first, second = Block(6).eval(), Block(6).eval()
    one, two = HierarchicalRouting(6, 3), HierarchicalRouting(6, 3, previous_experts=3)
    head = route_block_(first, one, [first.depthwise, first.pointwise], hand_over=True)
    tail = route_block_(second, two, [second.depthwise, second.pointwise], previous=head.slot)
    x = torch.randn(2, 6, 5, 5)
    hidden = first(x)
    expected = two(hidden, one(x))
    seen = []
    second.pointwise.register_forward_pre_hook(lambda module, args: seen.append(tail.slot(args[0])))
    second(hidden)
    torch.testing.assert_close(seen[0], expected)
    with pytest.raises(UsageError, match="not running"):
        second(hidden)


def test_one_routing_for_two_blocks() -> None:
    first, second = Block(6).eval(), Block(6).eval()
    layers = [layer for block in (first, second) for layer in (block.depthwise, block.pointwise)]
    routed = route_block_(first, SigmoidRouting(6, 3), layers, until=second)
    x = torch.randn(2, 6, 5, 5)
    hidden = first(x)
    weights = first.routing_fn(x)
    torch.testing.assert_close(routed.slot(x), weights)
    second(hidden)
    with pytest.raises(UsageError, match="not running"):
        routed.slot(x)


def test_gradients_reach_the_routing_function() -> None:
    grads = gradients(Net(), torch.randn(4, 3, 8, 8))
    assert all(grads[f"blocks.{i}.routing_fn.fc.weight"].abs().sum() > 0 for i in (0, 1))


def test_remove_takes_hooks_and_routing_away() -> None:
    block = Block(6)
    routed = route_block_(block, SigmoidRouting(6, 3), [block.depthwise])
    routed.remove()
    assert not hasattr(block, "routing_fn")
    assert not block._forward_pre_hooks
    assert not block._forward_hooks


def test_bad_blocks() -> None:
    with pytest.raises(ValueError, match="`block` must not be a container .*, got a Sequential: "):
        route_block_(nn.Sequential(), SigmoidRouting(6, 3), [])
    block = Block(6)
    route_block_(block, SigmoidRouting(6, 3), [])
    with pytest.raises(
        ValueError, match="`block` must not have an attribute `routing_fn` yet, .* it is routed already"
    ):
        route_block_(block, SoftmaxRouting(6, 3), [])
    with pytest.raises(UsageError, match="`x` must be a tensor, for its .* to be routed by, got none: pass it"):
        block("not a tensor")


def test_weights_do_not_outlive_a_block_that_skips_its_last_layer() -> None:
    class Skipping(Block):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.depthwise(x)

    block = Skipping(6)
    route_block_(block, SigmoidRouting(6, 3), [block.depthwise, block.pointwise], until=block.pointwise)
    block(torch.randn(2, 6, 5, 5))
    with pytest.raises(UsageError, match="not running"):
        block.depthwise(torch.randn(2, 6, 5, 5))
