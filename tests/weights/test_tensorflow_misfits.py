"""Checkpoints of other networks, and networks that compute something else: what is said of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import condconv
from condconv import convert_
from condconv.errors import UsageError
from condconv.weights import load_state_dict
from condconv.weights.tensorflow import from_tensorflow

from .author import (
    CC,
    FIRST_CONDITIONAL,
    ROOT,
    Author,
    assert_same_state,
    changed,
    refusal,
    timm,
    without,
)

SIZE = "the checkpoint seems to have 16 blocks, 4 experts, 10 classes; create the network of that size"


def test_other_number_of_blocks(conditional, variables) -> None:
    message = refusal(without(variables, "blocks_15/"), conditional)
    assert message == (
        "`path` must hold blocks 0 to 15, got blocks 0, 1, 2, 3 and 11 more: the checkpoint seems to have 15 "
        "blocks, 4 experts, 10 classes; create the network of that size"
    )
    assert "got no block" in refusal({}, conditional)


def test_conditional_checkpoint_and_static_model(static, variables) -> None:
    assert refusal(variables, static) == (
        f"`path` must hold 2 conv2d in blocks_{FIRST_CONDITIONAL} (for blocks.4.0.conv_pw, blocks.4.0.conv_pwl), "
        f"got 0: {SIZE}"
    )


def test_static_checkpoint_and_conditional_model(static, conditional) -> None:
    """Kernels come as they are; whether they can be experts is decided where they are loaded."""
    state = from_tensorflow(Author().write(static), conditional)
    kept = {name: value for name, value in static.state_dict().items() if "num_batches" not in name}
    assert_same_state(state, kept)
    assert not any("routing_fn" in name for name in state)


def test_other_number_of_experts(conditional, variables) -> None:
    twice = {name: np.concatenate([v, v]) if "cond_" in name else v for name, v in variables.items()}
    message = refusal(twice, conditional)
    # blocks.4.0 expands 80 channels to 480.
    name = f"{ROOT}/blocks_8/cond_conv2d_1/condconv_kernel"
    assert f"must hold shape (4, 38400) in {name} for blocks.4.0.conv_pw, got (8, 38400)" in message
    assert "16 blocks, 8 experts, 10 classes" in message


def test_other_number_of_classes(conditional, variables) -> None:
    more = changed(variables, "head/dense/kernel", np.zeros((1280, 1000), np.float32))
    more = changed(more, "head/dense/bias", np.zeros(1000, np.float32))
    assert from_tensorflow(more, conditional)["classifier.weight"].shape == (1000, 1280)
    with pytest.raises(UsageError, match="its classifier is for 1000 classes: create the network with as many, or"):
        load_state_dict(condconv.create_model(CC, num_classes=10), from_tensorflow(more, conditional))


def test_classifier_without_a_place(variables) -> None:
    model = timm.create_model(CC, num_classes=0)
    message = refusal(variables, model)
    assert f"a place in the model, got {ROOT}/head/dense/bias, {ROOT}/head/dense/kernel: {SIZE}" in message


@pytest.mark.parametrize(
    ("name", "shape", "target"),
    [
        ("stem/conv2d/kernel", (3, 3, 4, 32), "conv_stem"),
        ("blocks_0/depthwise_conv2d/depthwise_kernel", (5, 5, 32, 1), "blocks.0.0.conv_dw"),
        ("blocks_3/se/conv2d_1/bias", (7,), "blocks.2.0.se.conv_expand"),
        ("blocks_9/dense/kernel", (112, 8), "blocks.4.1.routing_fn"),
        ("blocks_9/dense/kernel", (4, 112), "blocks.4.1.routing_fn"),
        ("blocks_9/depthwise_cond_conv2d/depthwise_condconv_kernel", (4, 3 * 3 * 672), "blocks.4.1.conv_dw"),
        ("head/tpu_batch_normalization/moving_mean", (640,), "bn2"),
    ],
)
def test_other_shapes(conditional, variables, name, shape, target) -> None:
    before = variables[f"{ROOT}/{name}"].shape
    message = refusal(changed(variables, name, np.zeros(shape, np.float32)), conditional)
    assert f"must hold shape {before} in {ROOT}/{name} for {target}, got {shape}: the checkpoint" in message


def test_missing_and_additional_variables(conditional, variables) -> None:
    message = refusal(without(variables, "stem/.*/beta"), conditional)
    assert "must hold a beta in stem for bn1, got " in message
    message = refusal(without(variables, "blocks_2/conv2d_1/"), conditional)
    assert "must hold 2 conv2d in blocks_2 (for blocks.1.1.conv_pw, blocks.1.1.conv_pwl), got 1" in message
    message = refusal(changed(variables, "blocks_2/conv2d_7/kernel", np.zeros(1)), conditional)
    assert "(for blocks.1.1.conv_pw, blocks.1.1.conv_pwl), got 3" in message
    message = refusal(changed(variables, "blocks_2/conv2d/bias", np.zeros(144)), conditional)
    assert message == f"`path` must hold nothing without a place in the model, got {ROOT}/blocks_2/conv2d/bias: {SIZE}"
    message = refusal(changed(variables, "blocks_2/dense/bias", np.zeros(4)), conditional)
    assert f"a place in the model, got {ROOT}/blocks_2/dense/bias" in message


def test_unknown_names(conditional, variables) -> None:
    more = {f"resnet/conv{n}/kernel": np.zeros(1) for n in range(7)}
    assert refusal({**variables, **more}, conditional) == (
        "`path` must hold the authors' EfficientNet by its names, got resnet/conv0/kernel, resnet/conv1/kernel, "
        "resnet/conv2/kernel, resnet/conv3/kernel and 3 more: leave out what does not belong to it"
    )
    for name in ("blocks_2/conv2d", "blocks_2/se/model/conv2d/kernel", "head/lstm/kernel", "unheard"):
        assert f"got {ROOT}/{name}: leave out" in refusal(changed(variables, name, np.zeros(1)), conditional)


def test_two_networks_in_one_checkpoint(conditional, variables) -> None:
    both = {**variables, **{f"teacher/{name}": values for name, values in variables.items()}}
    name = f"{ROOT}/stem/conv2d/kernel"
    assert f"must hold each layer once, got {name} and teacher/{name}" in refusal(both, conditional)


def test_other_padding(variables) -> None:
    model = timm.create_model("efficientnet_cc_b0_4e", num_classes=10, bn_eps=1e-3)
    assert refusal(variables, model) == (
        "`model` must pad strided convolutions as TensorFlow does to take weights of a TensorFlow checkpoint, got "
        "Conv2d with padding=(1, 1) in conv_stem: create the network with 'tf_' before its name, bn_eps=0.001"
    )
    # The stem may pad by luck: every strided layer is looked at.
    model.conv_stem = timm.create_model(CC).conv_stem
    assert "got Conv2d with padding=(1, 1) in blocks.1.0.conv_dw" in refusal(variables, model)
    for stage, block in ((1, 0), (2, 0), (3, 0)):
        model.blocks[stage][block].conv_dw.stride = (1, 1)
    assert "got CondConv2d with padding=(2, 2) in blocks.5.0.conv_dw" in refusal(variables, model)


def test_our_layers_with_other_padding(variables) -> None:
    model = timm.create_model("efficientnet_b0", num_classes=10, bn_eps=1e-3).eval()
    convert_(model, 4, layers="blocks.[456].*,conv_stem", example_input=torch.randn(1, 3, 64, 64))
    assert "got CondConv2d with padding=(1, 1) in conv_stem" in refusal(variables, model)


def test_other_epsilon(variables) -> None:
    message = refusal(variables, timm.create_model(CC, num_classes=10, bn_eps=1e-5))
    assert (
        "must have batch norms with eps=0.001 to take weights of a TensorFlow checkpoint, got 1e-05 in bn1" in message
    )


def test_a_routing_that_is_no_sigmoid(variables) -> None:
    """The authors' is one."""
    model = condconv.create_model(CC, num_classes=10, routing="softmax")
    message = (
        "must route by a sigmoid of one linear layer to take blocks.4.0.routing_fn.weight of x, got SoftmaxRouting"
    )
    with pytest.raises(UsageError, match=message):
        load_state_dict(model, from_tensorflow(variables, model), source="x")


@pytest.mark.parametrize("name", ["resnet18", "tf_mixnet_s", "tf_efficientnetv2_b0", "tf_mobilenetv3_small_100"])
def test_other_architectures(variables, name) -> None:
    message = refusal(variables, timm.create_model(name))
    assert message.startswith("`model` must be an EfficientNet as timm builds it, got ")
