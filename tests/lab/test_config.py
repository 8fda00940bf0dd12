import json
from dataclasses import replace

import pytest

from condconv.errors import UsageError
from condconv.files.checkpoint_format import MOST_PIXELS
from condconv.lab.config import TrainConfig
from tests.lab.samples import settings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "`epochs` must be a whole number from 1 to 1,000,000, got 0"),
        ({"epochs": 1.5}, "`epochs` must be a whole number from 1 to 1,000,000, got 1.5"),
        ({"seed": -1}, "`seed` must be a whole number from 0 to 9,223,372,036,854,775,807, got -1"),
        ({"lr": 0.0}, "`lr` must be a number above 0 and at most 1,000,000, got 0.0"),
        ({"lr": float("nan")}, "`lr` must be a number above 0 and at most 1,000,000, got nan"),
        ({"hflip": 1.5}, "`hflip` must be a number from 0 to 1, or None, got 1.5"),
        ({"min_crop": 0}, "`min_crop` must be a number above 0 and at most 1, or None, got 0"),
        ({"in_chans": 2}, "`in_chans` must be one of 1, 3, or None, got 2"),
        ({"mixed_precision": "fp8"}, "`mixed_precision` must be one of no, bf16, fp16, got 'fp8'"),
        (
            {"data": ""},
            "`data` must be a non-empty path in UTF-8, no longer than the system allows, got '': give another",
        ),
        ({"batch_size": 10, "grad_accumulation": 4}, "`batch_size` must be a multiple of `grad_accumulation`"),
        ({"epochs": 3, "warmup_epochs": 3}, "`warmup_epochs` must be below `epochs` (3), got 3"),
        ({"compile": 1}, "`compile` must be True or False, got 1"),
        ({"ema_decay": 1.0}, "`ema_decay` must be a number from 0 to 0.999999, or None, got 1.0"),
        ({"patience": 0}, "`patience` must be a whole number from 1 to 1,000,000, or None, got 0"),
        ({"log_with": "paper"}, "`log_with` must be one of tensorboard, wandb, or None, got 'paper'"),
        ({"optimizer_options": [1]}, "`optimizer_options` must be a mapping of names to"),
        ({"pretrained": True, "init_from": "x"}, "`init_from` must be None with `pretrained`, got 'x'"),
        ({"init_skip": "fc*"}, "`init_skip` must be None without `init_from`, got 'fc*'"),
    ],
)
def test_a_wrong_value_names_the_field_the_rule_and_the_value(tmp_path, changes, message):
    with pytest.raises(UsageError) as caught:
        settings(tmp_path, **changes)
    assert message in str(caught.value)


def test_json_round_trip(tmp_path):
    config = settings(tmp_path, model_options={"output_stride": 4}, clip_grad=1.0, lr=0.1 + 0.2)
    assert TrainConfig(**json.loads(config.to_json())) == config


def test_a_run_of_other_settings_is_named_wherever_it_is_and_whatever_logs_it(tmp_path):
    ours, theirs = settings(tmp_path / "a", lr=0.1), settings(tmp_path / "b", lr=0.2, log_with="wandb")
    with pytest.raises(UsageError, match=f"got {tmp_path / 'a'}, which differs in lr: 0.1, not 0.2: give another"):
        ours.check_same(theirs)
    ours.check_same(replace(theirs, lr=0.1))


def test_where_and_how_a_run_is_computed_may_change_when_it_goes_on(tmp_path):
    ours = settings(tmp_path)
    how = {"workers": 3, "on_bad_image": "skip", "patience": 2, "grad_accumulation": 4, "compile": True}
    ours.check_same(replace(ours, **how))
    with pytest.raises(UsageError, match="differs in mixed_precision"):
        ours.check_same(replace(ours, **how, mixed_precision="bf16"))


@pytest.mark.parametrize(
    ("given", "kept"), [("pets/", "pets"), ("pets//", "pets"), ("/", "/"), ("digits/", "digits/"), ("digits", "digits")]
)
def test_a_slash_behind_a_folder_makes_no_other_run(tmp_path, given, kept):
    assert settings(tmp_path, data=given).data == kept


def test_what_json_changes_is_no_difference(tmp_path):
    config = settings(tmp_path, optimizer_options={"betas": (0.9, 0.99)})
    config.check_same(TrainConfig(**json.loads(config.to_json())))


def test_an_image_may_be_as_large_as_a_checkpoint_allows():
    TrainConfig(data="digits", model="m", out="o", image_size=MOST_PIXELS)
    with pytest.raises(UsageError, match="`image_size` must be a whole number from 1 to 2,048, or None, got 2049"):
        TrainConfig(data="digits", model="m", out="o", image_size=MOST_PIXELS + 1)
