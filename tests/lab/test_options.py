"""Options that may be given to a network and to a dataset's reader, wherever they come from."""

import pytest

from condconv.errors import UsageError
from condconv.lab.options import DATA_OPTIONS, MODEL_OPTIONS
from tests.lab.samples import settings


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"output_stride": 8, "drop_path_rate": 0.1, "act_layer": "silu", "se_layer": None, "init": "same_output"},
        {"out_indices": (1, 2), "widths": [8, 16.5, "a", None, True]},
        {"depth_multiplier": 1.5},
        {"layers": [3, 24, 36, 3]},
        {"pretrained_cfg": "in1k"},
        {"pretrained_cfg": ""},
    ],
)
def test_what_a_network_is(options):
    MODEL_OPTIONS.check("model_options", options)


@pytest.mark.parametrize(
    "options",
    [
        {"pretrained_cfg": {"file": "weights.pth"}},
        {"pretrained_cfg": ["weights.pth"]},
        {"pretrained_cfg": "../weights"},
        {"pretrained_cfg_overlay": {"url": "http://localhost/x"}},
        {"pretrained_cfg_overlay": "x"},
        {"pretrained": True},
        {"pretrained_strict": False},
        {"checkpoint_path": "x.pth"},
        {"cache_dir": "/tmp"},
        {"model_cfg": "x"},
        {"num_classes": 3},
        {"in_chans": 3},
        {"features_only": True},
        {"kwargs_filter": "x"},
        {"block_args": {"a": 1}},
        {"a": [[1]]},
        {"a": [1] * 65},
        {"a": "x" * 201},
        {"a": float("nan")},
        {"a": float("inf")},
        {"a": 10**400},
        {"a": {1, 2}},
        {"depth_multiplier": 17},
        {"depth_multiplier": [1, 10**9]},
        {"depth_multiplier": True},
        {"layers": [3, 4, 994, 3]},
        {"layers": (10**12, -(10**12))},
        {"a b": 1},
        {"": 1},
        {3: 1},
        {f"a{index}": 1 for index in range(65)},
        [("a", 1)],
        None,
    ],
    ids=lambda options: repr(options)[:40],
)
def test_what_a_network_may_not_be_told(options):
    with pytest.raises(UsageError, match="`model_options` must be a mapping of names to numbers, texts") as caught:
        MODEL_OPTIONS.check("model_options", options)
    assert "--init-from FILE" in str(caught.value)


def test_options_that_are_allowed_leave_the_message_to_those_that_are_not():
    allowed = dict.fromkeys(("act_layer", "norm_layer", "aa_layer"), "x" * 40)
    with pytest.raises(UsageError) as caught:
        MODEL_OPTIONS.check("model_options", {**allowed, "block_args": {"a": 1}, "rd_ratio": [[1]], "bn_eps": 1e-5})
    assert "got {'block_args': {'a': 1}, 'rd_ratio': [[1]]}: for weights" in str(caught.value)


def test_the_settings_of_a_run_have_the_same_rules(tmp_path):
    with pytest.raises(
        UsageError, match="`model_options` must be .*got {'pretrained_cfg': {'file': 'x.pth'}}: for weights"
    ):
        settings(tmp_path, model_options={"pretrained_cfg": {"file": "x.pth"}})
    for options in ({"trust_remote_code": True}, {"class_map": "a.pkl"}, {"download": True}, {"input_key": ["img"]}):
        with pytest.raises(
            UsageError, match="`data_options` must be a mapping of some of input_key, target_key, .*run"
        ):
            settings(tmp_path, data="hfds/x", data_options=options)
    DATA_OPTIONS.check("data_options", {"val_split": "test", "target_key": "fine_label", "small": True})
