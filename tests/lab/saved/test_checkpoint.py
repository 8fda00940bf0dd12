import json
from dataclasses import replace

import pytest
import safetensors.torch
import torch
from timm.optim import create_optimizer_v2  # type: ignore[attr-defined]
from torch import nn

from condconv.errors import UsageError
from condconv.files.checkpoint_format import FORMAT
from condconv.lab.data.preprocessing import Preprocessing
from condconv.lab.saved.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from condconv.lab.saved.metrics import EpochMetrics
from condconv.lab.saved.network import load_weights_
from tests.lab.samples import same_tensors, settings, small_network


@pytest.fixture
def checkpoint(tmp_path) -> Checkpoint:
    torch.manual_seed(0)
    network = small_network(10, 1)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.1 + 0.2)
    network(torch.randn(4, 1, 8, 8)).sum().backward()
    optimizer.step()
    return Checkpoint(
        config=settings(tmp_path, model_options={"output_stride": 4}),
        model_options={"output_stride": 4},
        class_names=tuple("0123456789"),
        preprocessing=Preprocessing(8, 1, 1.0, "bilinear", (0.3,), (0.4,)),
        metrics=(EpochMetrics(1, 0.1, 2.0, 1.0 / 3, 0.5, None, 100.0, 9.0, 0),),
        train_images=898,
        model=network.state_dict(),
        optimizer=optimizer.state_dict(),
    )


def test_round_trip(tmp_path, checkpoint):
    save_checkpoint(tmp_path / "a.safetensors", checkpoint)
    read = load_checkpoint(tmp_path / "a.safetensors")
    assert same_tensors(checkpoint.model, read.model)
    assert replace(read, model={}, optimizer=None) == replace(checkpoint, model={}, optimizer=None)
    assert read.epoch == 1


def test_an_optimizer_goes_on_from_the_file_as_from_memory(tmp_path, checkpoint):
    save_checkpoint(tmp_path / "a.safetensors", checkpoint)
    read = load_checkpoint(tmp_path / "a.safetensors")
    results = []
    for each in (checkpoint, read):
        network = small_network(10, 1)
        load_weights_(network, each.model, "a")
        optimizer = torch.optim.AdamW(network.parameters())
        assert each.optimizer is not None
        optimizer.load_state_dict(each.optimizer)
        for parameter in network.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        results.append(network.state_dict())
    assert same_tensors(*results)
    assert not same_tensors(results[0], checkpoint.model)


def test_tied_weights_are_kept(tmp_path, checkpoint):
    first = nn.Linear(3, 3)
    network = nn.Sequential(first, first)
    save_checkpoint(tmp_path / "a.safetensors", replace(checkpoint, model=network.state_dict(), optimizer=None))
    assert same_tensors(network.state_dict(), load_checkpoint(tmp_path / "a.safetensors").model)


def test_a_file_cut_off_anywhere_is_refused(tmp_path, checkpoint):
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, checkpoint)
    whole = path.read_bytes()
    lengths = [*range(0, 40), *range(40, len(whole), 401), len(whole) - 1]
    for length in lengths:
        path.write_bytes(whole[:length])
        with pytest.raises(UsageError, match=r"`checkpoint` must be a whole safetensors file, got .*a\.safetensors"):
            load_checkpoint(path)


def test_a_pickle_is_refused_without_being_run(tmp_path):
    class Bomb:
        def __reduce__(self):
            return exec, ("raise SystemExit('it ran')",)

    torch.save({"model": Bomb()}, tmp_path / "a.pt")
    with pytest.raises(UsageError, match="must be a whole safetensors file"):
        load_checkpoint(tmp_path / "a.pt")


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (None, "must be written by condconv train, got"),
        ("{", "must have a header in JSON, got"),
        ("[]", "with format None: train again"),
        (json.dumps({"format": 99}), "with format 99: train again, or use the version that wrote it"),
        (json.dumps({"format": 3}), "must have format 6, which this version of condconv writes, got"),
        (json.dumps({"format": FORMAT}), "damaged in its header"),
    ],
)
def test_a_foreign_header_is_refused(tmp_path, header, reason):
    metadata = None if header is None else {"condconv": header}
    safetensors.torch.save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors", metadata)
    with pytest.raises(UsageError) as caught:
        load_checkpoint(tmp_path / "a.safetensors")
    assert reason in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"`checkpoint` must be a file, got .*best\.safetensors"):
        load_checkpoint(tmp_path / "best.safetensors")


def test_weights_of_another_network_change_nothing_and_name_the_differences():
    network, other = nn.Sequential(nn.Linear(2, 3)), nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 1))
    before = {name: each.clone() for name, each in network.state_dict().items()}
    weights = {name: each for name, each in other.state_dict().items() if name != "0.bias"}
    with pytest.raises(UsageError) as caught:
        load_weights_(network, weights, "a.safetensors")
    message = str(caught.value)
    assert "it lacks 0.bias" in message
    assert "the network has no 1.weight, 1.bias" in message
    assert "0.weight (4, 2) (the network's: (3, 2))" in message
    assert same_tensors(before, network.state_dict())


@pytest.mark.parametrize("name", ["lamb", "adafactorbv"])
def test_an_optimizer_that_keeps_a_tensor_or_a_dtype_in_its_groups(tmp_path, checkpoint, name):
    network = small_network(10, 1)
    optimizer = create_optimizer_v2(network, opt=name, lr=0.1)
    network(torch.randn(4, 1, 8, 8)).sum().backward()
    optimizer.step()
    save_checkpoint(tmp_path / "a.safetensors", replace(checkpoint, optimizer=optimizer.state_dict()))
    read = load_checkpoint(tmp_path / "a.safetensors").optimizer
    assert read is not None
    for ours, theirs in zip(read["param_groups"], optimizer.state_dict()["param_groups"], strict=True):
        assert ours.keys() == theirs.keys()
        kept = [each for each, value in theirs.items() if isinstance(value, torch.Tensor | torch.dtype)]
        assert kept
        assert [ours[each] for each in kept] == [theirs[each] for each in kept]
    optimizer.load_state_dict(read)
    optimizer.step()
