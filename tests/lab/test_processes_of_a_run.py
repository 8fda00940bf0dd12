import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
from accelerate import Accelerator
from accelerate.state import PartialState

from condconv.errors import MissingExtraError, UsageError
from condconv.lab.processes import create_accelerator, micro_batch, only_here
from tests.lab.samples import settings


@pytest.mark.parametrize(
    ("changes", "processes", "images"),
    [({"batch_size": 64}, 4, 16), ({"batch_size": 64, "grad_accumulation": 2}, 4, 8), ({"batch_size": 9}, 3, 3)],
)
def test_an_update_is_shared_out(tmp_path, changes, processes, images):
    assert micro_batch(settings(tmp_path, **changes), SimpleNamespace(num_processes=processes)) == images


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"batch_size": 10},
            r"must be a multiple of processes x grad_accumulation \(4 x 1\), got 10: take 8",
        ),
        ({"batch_size": 12, "mixup": 0.2}, r"must be an even multiple of .* \(4 x 1\) with mixup .* got 12: take 16"),
        ({"batch_size": 4}, r"must be at least twice .* \(4 x 1\), got 4: .* take 8"),
    ],
)
def test_an_update_that_cannot_be_shared_out_is_refused(tmp_path, changes, message):
    with pytest.raises(UsageError, match=message):
        micro_batch(settings(tmp_path, **changes), SimpleNamespace(num_processes=4))


def test_what_accelerate_would_leave_out_is_refused(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="`sync_bn` must be False on the CPU"):
        create_accelerator(settings(tmp_path, sync_bn=True))
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(UsageError, match="--use_fsdp` must run on several GPUs, got 1 x cpu"):
        create_accelerator(settings(tmp_path))


@pytest.mark.parametrize("logger", ["tensorboard", "wandb"])
def test_a_logger_that_is_not_installed_is_named(tmp_path, monkeypatch, logger):
    monkeypatch.setitem(sys.modules, logger, None)
    with pytest.raises(MissingExtraError, match=rf'{logger} is needed .*: pip install "condconv\[{logger}\]"'):
        create_accelerator(settings(tmp_path, log_with=logger))


def test_the_accelerator_is_of_the_device_asked_for(tmp_path):
    accelerator = create_accelerator(settings(tmp_path))
    assert isinstance(accelerator, Accelerator)
    assert accelerator.device.type == "cpu"


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"ACCELERATE_DYNAMO_BACKEND": "foo"}, "`accelerate` must be able to start here, got ACCELERATE_DYNAMO_BAC"),
        ({"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "x"}, "correct these variables of the environment, or unset them"),
        ({"ACCELERATE_TORCH_DEVICE": "moon"}, "got ACCELERATE_TORCH_DEVICE='moon' (Expected one of cpu, cuda, "),
        ({"RANK": "5"}, "`RANK` must be the number of this process, 0 of 1, got '5' in the environment: unset it, or"),
        ({"RANK": "abc"}, "`RANK` must be a number in the environment, got 'abc'"),
    ],
)
def test_variables_that_no_launcher_sets_are_named(tmp_path, monkeypatch, request, variables, said):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    PartialState._reset_state()  # as in a new process
    request.addfinalizer(PartialState._reset_state)
    with pytest.raises(UsageError) as caught, only_here(tmp_path / "run"):
        create_accelerator(replace(settings(tmp_path), device="auto"))
    assert said in str(caught.value)
