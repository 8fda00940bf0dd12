import pytest

from condconv.errors import UsageError
from condconv.train import TrainConfig
from tests.train.samples import settings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "`epochs` must be a whole number of at least 1, got 0"),
        ({"epochs": 1.5}, "`epochs` must be a whole number of at least 1, got 1.5"),
        ({"seed": -1}, "`seed` must be a whole number of at least 0, got -1"),
        ({"lr": 0.0}, "`lr` must be a finite number above 0, got 0.0"),
        ({"lr": float("nan")}, "`lr` must be a finite number above 0, got nan"),
        ({"hflip": 1.5}, "`hflip` must be a number from 0 to 1, or None, got 1.5"),
        ({"min_crop": 0}, "`min_crop` must be a number above 0 and at most 1, or None, got 0"),
        ({"in_chans": 2}, "`in_chans` must be one of 1, 3, or None, got 2"),
        ({"mixed_precision": "fp8"}, "`mixed_precision` must be one of no, bf16, fp16, got 'fp8'"),
        ({"data": ""}, "`data` must be a text that is not empty, got ''"),
        ({"batch_size": 10, "grad_accumulation": 4}, "`batch_size` must be a multiple of `grad_accumulation`"),
        ({"epochs": 3, "warmup_epochs": 3}, "`warmup_epochs` must be below `epochs` (3), got 3"),
    ],
)
def test_a_wrong_value_names_the_field_the_rule_and_the_value(tmp_path, changes, message):
    with pytest.raises(UsageError) as caught:
        settings(tmp_path, **changes)
    assert message in str(caught.value)


def test_json_round_trip(tmp_path):
    config = settings(tmp_path, model_options={"output_stride": 4}, clip_grad=1.0, lr=0.1 + 0.2)
    assert TrainConfig.from_json(config.to_json()) == config


@pytest.mark.parametrize("text", ["{", '{"data": "digits"}', '{"colour": 1}'])
def test_json_of_something_else_is_refused(text):
    with pytest.raises(UsageError, match="`config` must be what this version of condconv writes"):
        TrainConfig.from_json(text)


def test_differences_name_the_fields_and_leave_the_place_out(tmp_path):
    ours, theirs = settings(tmp_path / "a", lr=0.1), settings(tmp_path / "b", lr=0.2)
    assert ours.differences(theirs) == ["lr: 0.1, not 0.2"]
