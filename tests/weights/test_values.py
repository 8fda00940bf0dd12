"""Values and files that would load, and leave a network that computes nonsense or a machine without memory."""

import struct
import zipfile

import pytest
import torch
from torch import nn

from condconv import CondConv2d
from condconv.errors import UsageError
from condconv.weights import load_pretrained, load_state_dict

from .networks import small


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e39])
@pytest.mark.parametrize("experts", [None, 2])
def test_weights_that_are_not_finite_in_the_network_are_refused_by_name(value, experts):
    state = {name: each.double() if each.is_floating_point() else each for name, each in small().state_dict().items()}
    state["stem.weight"].view(-1)[-1] = value
    network = small(experts)
    before = {name: each.clone() for name, each in network.state_dict().items()}
    with pytest.raises(
        UsageError, match=r"finite weights, .* got .* with others in stem\.weight: .*skip='stem\.weight'"
    ):
        load_state_dict(network, state)
    assert all(torch.equal(each, before[name]) for name, each in network.state_dict().items())


@pytest.mark.parametrize("entry", ["weight", "bias", "centre", "scale"])
def test_what_experts_have_is_finite_in_weights_of_the_same_network(entry):
    networks = [
        nn.Sequential(CondConv2d(3, 4, 3, num_experts=2, experts="deltas(scale=0.2)"), nn.ReLU()) for _ in range(2)
    ]
    name = f"0.experts.{entry}"
    state = networks[0].state_dict()
    state[name] = torch.full_like(state[name], float("nan"))
    with pytest.raises(UsageError, match=rf"finite weights, .* with others in {name}: its network has diverged"):
        load_state_dict(networks[1], state)
    assert all(bool(each.isfinite().all()) for each in networks[1].state_dict().values())


@pytest.mark.parametrize("entry", ["running_var", "standardization.var"])
def test_a_variance_below_zero_is_refused_and_can_be_left_out(entry):
    network, taker = (small(2, routing="sigmoid(standardize=True)") for _ in range(2))
    state = network.state_dict()
    name = next(name for name in state if name.endswith(entry))
    state[name] = state[name] - 2
    with pytest.raises(UsageError, match=rf"variances of 0 or more, got .* in {name}: "):
        load_state_dict(taker, state)
    load_state_dict(taker, state, skip=[name])


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors_are_refused_by_name(tmp_path):
    nested = torch.nested.nested_tensor([torch.zeros(4), torch.zeros(1)])
    torch.save({**small().state_dict(), "stem.weight": nested}, tmp_path / "a.pth")
    with pytest.raises(UsageError, match=r"must hold values, got .* with nested tensors, in 'stem\.weight'"):
        load_pretrained(small(), tmp_path / "a.pth")


def test_a_shape_without_values_that_torch_cannot_have_is_refused(tmp_path):
    header = b'{"w":{"dtype":"F16","shape":[0,5,9223372036854775808],"data_offsets":[0,0]}}'
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(UsageError, match="with 'w' of shape"):
        load_pretrained(small(), tmp_path / "a.safetensors")


@pytest.mark.parametrize(("mebibytes", "refused"), [(300, True), (1, False)])
def test_an_archive_that_unpacks_to_more_than_any_weights_is_refused(tmp_path, mebibytes, refused):
    torch.save(small().state_dict(), tmp_path / "plain.pth")
    with zipfile.ZipFile(tmp_path / "plain.pth") as plain, zipfile.ZipFile(tmp_path / "a.pth", "w", 8) as packed:
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
        packed.writestr(plain.namelist()[0].split("/")[0] + "/more", bytes(mebibytes * 2**20))
    if refused:
        with pytest.raises(UsageError, match="as torch.save writes it, got .* MiB, which would unpack to 300 MiB"):
            load_pretrained(small(), tmp_path / "a.pth")
    else:
        load_pretrained(small(), tmp_path / "a.pth")
