"""Checkpoints in the authors' naming, written from a network of timm's, and mapped back."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import pytest
import torch
from torch import nn

import condconv
from condconv import convert_
from condconv.errors import UsageError
from condconv.weights import load_state_dict
from condconv.weights.tensorflow import from_tensorflow, read_tensorflow_checkpoint

from .author import (
    CC,
    EMA,
    Author,
    as_experts,
    assert_same_state,
    changed,
    load_timm,
    randomised,
    refusal,
    save,
    timm,
    trained,
)


@pytest.mark.parametrize("name", [CC, "tf_efficientnet_b0"])
def test_the_whole_way_into_our_network(tf, conditional, static, name, tmp_path) -> None:
    """The authors' conditional network, and their static one with its kernel for all experts; other classes skipped."""
    source = deepcopy(conditional if name == CC else static).double()
    prefix = str(tmp_path / "model.ckpt-7")
    save(tf, prefix, trained(Author().write(source.float())))
    model = condconv.create_model(CC, num_classes=10).double().eval()
    report = condconv.load_pretrained(model, prefix)
    assert len(report.upcycled) == (0 if name == CC else 24)
    x = torch.randn(2, 3, 96, 96, dtype=torch.float64)
    with torch.no_grad():
        expected = source.double()(x)
        torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-9 * expected.abs().max().item())
    other = condconv.create_model(CC, num_classes=3)
    with pytest.raises(UsageError, match=r"or pass skip='classifier.\*'"):
        condconv.load_pretrained(other, prefix)
    assert condconv.load_pretrained(other, prefix, skip=["classifier.*"]).skipped == (
        "classifier.weight",
        "classifier.bias",
    )


def test_logits_of_the_network_that_was_written(tf, conditional, variables, tmp_path) -> None:
    prefix = save(tf, tmp_path / "model.ckpt", trained(variables))
    fresh = randomised(CC, seed=1)
    state = from_tensorflow(read_tensorflow_checkpoint(prefix), fresh)
    for size in (224, 192):
        x = torch.randn(2, 3, size, size)
        with torch.no_grad():
            expected, before, after = conditional(x), fresh(x), load_timm(randomised(CC, seed=1), state)(x)
        assert (before - expected).abs().max() > 0.1 * expected.std() > 0
        torch.testing.assert_close(after, expected)


def test_convolutions_of_tensorflow_itself(tf, conditional, variables) -> None:
    """The authors mix the rows, reshape them to taps, inputs, outputs and call TensorFlow's convolution."""
    model = load_timm(timm.create_model(CC, num_classes=10), from_tensorflow(variables, conditional)).double()
    model = model.requires_grad_(False)
    scope = "efficientnet-condconv-b0-4e"
    block, name = model.blocks[5][0], f"{scope}/blocks_11"  # the conditional block with stride 2
    rng = np.random.default_rng(0)
    for size in (14, 13):  # TensorFlow pads 1 + 2 pixels of an even size with five taps and stride 2, 2 + 2 of an odd
        routing = rng.random((1, 4))
        mixed = {
            kind: (routing @ variables[f"{name}/{kind}"].astype(np.float64)).reshape(shape)
            for kind, shape in (
                ("cond_conv2d_1/condconv_kernel", (1, 1, 112, 672)),
                ("depthwise_cond_conv2d/depthwise_condconv_kernel", (5, 5, 672, 1)),
                ("cond_conv2d_2/condconv_kernel", (1, 1, 672, 192)),
            )
        }
        x = rng.standard_normal((1, size, size, 112))
        expand, depthwise, project = mixed.values()
        expected = tf.nn.convolution(x, expand, padding="SAME")
        expected = tf.nn.depthwise_conv2d(expected, depthwise, strides=(1, 2, 2, 1), padding="SAME")
        expected = tf.nn.convolution(expected, project, padding="SAME").numpy()
        y, weights = torch.from_numpy(x).permute(0, 3, 1, 2), torch.from_numpy(routing)
        for layer in (block.conv_pw, block.conv_dw, block.conv_pwl):
            y = layer(y, weights)
        torch.testing.assert_close(y.permute(0, 2, 3, 1), torch.from_numpy(expected))

        image = rng.standard_normal((1, size, size, 3))
        stem = tf.nn.convolution(image, variables[f"{scope}/stem/conv2d/kernel"].astype(np.float64), 2, "SAME")
        y = model.conv_stem(torch.from_numpy(image).permute(0, 3, 1, 2))
        torch.testing.assert_close(y.permute(0, 2, 3, 1), torch.from_numpy(stem.numpy()))


def test_our_layers_compute_what_timm_s_do(conditional, variables) -> None:
    model = timm.create_model("tf_efficientnet_b0", num_classes=10).eval()
    example = torch.randn(2, 3, 64, 64)
    convert_(
        model,
        4,
        layers="blocks.[456].?.conv_*",
        scope="block",
        routing="sigmoid",
        experts="dense",
        example_input=example,
    )
    state = from_tensorflow(variables, model)
    load_state_dict(model, state)
    with torch.no_grad():
        expected = deepcopy(conditional).double()(example.double())
        torch.testing.assert_close(model.double()(example.double()), expected)


# Names


@pytest.mark.parametrize("style", ["block", "network"])
@pytest.mark.parametrize("scope", ["efficientnet-condconv-b0-4e", "any/model", "stem/head"])
def test_names_and_counters(conditional, static, style, scope) -> None:
    for model in (conditional, static):
        variables = Author(style, scope).write(model)
        for order in (variables, dict(reversed(variables.items()))):
            assert_same_state(from_tensorflow(order, model), as_experts(model))


def test_scopes_may_differ_between_layers(conditional, variables) -> None:
    mixed = {name.replace("/blocks", "/model/blocks") if "cond_" in name else name: v for name, v in variables.items()}
    assert len(mixed.keys() - variables.keys()) == 8 * 3  # conditional layers
    assert_same_state(from_tensorflow(mixed, conditional), as_experts(conditional))


def test_averages(conditional, variables) -> None:
    expected = as_experts(conditional)
    held = trained(variables)
    raw = {name: value + 1 for name, value in expected.items()}
    assert_same_state(from_tensorflow(held, conditional), expected)
    assert_same_state(from_tensorflow(held, conditional, averaged=False), raw)
    # Statistics of batch norms without averages are taken as they are.
    held = {name: values for name, values in held.items() if not ("moving_" in name and name.endswith(EMA))}
    some = {name: raw[name] if "running_" in name else value for name, value in expected.items()}
    assert_same_state(from_tensorflow(held, conditional), some)
    averages = {name: values for name, values in held.items() if name.endswith(EMA) or "moving_" in name}
    assert_same_state(from_tensorflow(averages, conditional), some)
    with pytest.raises(
        UsageError, match="`averaged` must be True for this checkpoint, got False: it has only the average"
    ):
        from_tensorflow(averages, conditional, averaged=False)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_result_is_a_float32_copy(static, dtype) -> None:
    held = {name: values.astype(dtype) for name, values in Author().write(static).items()}
    kept = {name: values.copy() for name, values in held.items()}
    state = from_tensorflow(held, static)
    assert {value.dtype for value in state.values()} == {torch.float32}
    for value in state.values():
        value.zero_()
    assert all((held[name] == kept[name]).all() for name in held)


def test_depthwise_multiplier(variables) -> None:
    """Output c * M + m of a depthwise convolution is channel c's m-th."""
    model = timm.create_model(CC, num_classes=10)
    model.blocks[0][0].conv_dw = nn.Conv2d(32, 96, 3, groups=32, bias=False)
    kernel = np.arange(3 * 3 * 32 * 3, dtype=np.float32).reshape(3, 3, 32, 3)
    state = from_tensorflow(changed(variables, "blocks_0/depthwise_conv2d/depthwise_kernel", kernel), model)
    weight = state["blocks.0.0.conv_dw.weight"]
    assert weight.shape == (96, 1, 3, 3)
    for channel, multiple in ((0, 0), (0, 2), (31, 1)):
        assert weight[channel * 3 + multiple, 0].tolist() == kernel[:, :, channel, multiple].tolist()


def test_biases_of_experts(variables) -> None:
    """The authors' layers have them under a name of their own, though their EfficientNet does without."""
    model = timm.create_model(CC, num_classes=10)
    model.blocks[4][0].conv_pw.bias = nn.Parameter(torch.zeros(4, 480))
    biases = np.arange(4 * 480, dtype=np.float32).reshape(4, 480)
    state = from_tensorflow(changed(variables, "blocks_8/cond_conv2d_1/condconv_bias", biases), model)
    assert state["blocks.4.0.conv_pw.bias"].tolist() == biases.tolist()
    assert "must hold a condconv_bias in blocks_8 for blocks.4.0.conv_pw, got nothing" in refusal(variables, model)
