"""How to train the paper's networks on ImageNet: one function per family, whose docstring is the record.

Each returns the settings for a static network as well as for its conditional twins, so that the two can be compared.
The top-1 figures are the paper's (`condconv.models.paper`). These networks have not been trained to the end here: a
recipe has the settings to run, and the source of each value.

*Authors* stands for their EfficientNet-CondConv code, *paper* for the paper's text, *timm* for values that are usual
with timm if neither states one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from condconv.lab.config import TrainConfig

# RMSProp as TensorFlow computes it, for 256 images per update; the batch scales it.
_LR_OF_256 = 0.016
_BATCH = 2048
_AUTHORS: dict[str, Any] = {
    "epochs": 350,
    "batch_size": _BATCH,
    "optimizer": "rmsproptf",
    "optimizer_options": {"alpha": 0.9, "momentum": 0.9, "eps": 1e-3},
    "lr": _LR_OF_256 * _BATCH / 256,
    "scheduler": "step",
    "scheduler_options": {"decay_epochs": 2.4, "decay_rate": 0.97, "warmup_lr": 0.0},
    "warmup_epochs": 5,
    "weight_decay": 1e-5,
    "label_smoothing": 0.1,
    "ema_decay": 0.9999,
}
# How images are read and with which arithmetic; the paper does not say.
_PLACE: dict[str, Any] = {
    "image_size": 224,
    "min_crop": 0.08,
    "workers": 8,
    "mixed_precision": "bf16",
    "channels_last": True,
}


def efficientnet_b0(data: str, model: str = "tf_efficientnet_cc_b0_8e") -> TrainConfig:
    """Return the settings of EfficientNet-B0, by the authors' values.

    - Source: authors; AutoAugment and mixup 0.2: the paper, as we recall it.
    - Command: `accelerate launch --num_processes 8 -m condconv train --recipe efficientnet_b0 --data imagenet/`
    - Hardware: 8 GPUs with 256 images each at 16 bits, 16 GB each or more.
    - Expected top-1: 77.2 for `tf_efficientnet_b0`, 77.8 for `tf_efficientnet_cc_b0_4e`, 78.3 for
      `tf_efficientnet_cc_b0_8e`, 79.5 for `tf_efficientnet_cc_b0_depth_8e`.
    """
    options = {"drop_rate": 0.25, "drop_path_rate": 0.2}
    return _config(data, model, _AUTHORS, model_options=options, auto_augment="v0", mixup=0.2)


def mnasnet_a1(data: str, model: str = "mnasnet_a1_cc_100_8e") -> TrainConfig:
    """Return the settings of MnasNet-A1.

    - Source: authors' values for EfficientNet-B0, which was trained as MnasNet was; dropout 0.2: timm. No mixup and
      no AutoAugment, which suit larger networks.
    - Command: `accelerate launch --num_processes 8 -m condconv train --recipe mnasnet_a1 --data imagenet/`
    - Hardware: 8 GPUs with 256 images each at 16 bits, 16 GB each or more.
    - Expected top-1: 74.9 for `mnasnet_a1_100`, 76.2 for `mnasnet_a1_cc_100_8e`.
    """
    return _config(data, model, _AUTHORS, model_options={"drop_rate": 0.2})


def mobilenet_v1(data: str, model: str = "mobilenet_v1_cc_100_8e") -> TrainConfig:
    """Return the settings of MobileNetV1, of any width and number of experts.

    - Source: dropout before the classifier: paper; its probability, 0.2, and 300 epochs: timm; the rest: authors'
      values for EfficientNet-B0, as RMSProp is MobileNet's own optimizer. As we recall the paper, its MobileNets and
      its ResNet-50 follow other settings, which we do not know.
    - Command: `accelerate launch --num_processes 8 -m condconv train --recipe mobilenet_v1 --data imagenet/`
    - Hardware: 8 GPUs with 256 images each at 16 bits, 16 GB each or more.
    - Expected top-1: 71.9 for `mobilenet_v1_100`, 73.7 for `mobilenet_v1_cc_100_8e`.
    """
    return _config(data, model, _AUTHORS, epochs=300, model_options={"drop_rate": 0.2})


def mobilenet_v2(data: str, model: str = "mobilenet_v2_cc_100_8e") -> TrainConfig:
    """Return the settings of MobileNetV2.

    - Source: dropout before the classifier: paper; its probability, 0.2, and 300 epochs: timm; the rest: authors'
      values for EfficientNet-B0.
    - Command: `accelerate launch --num_processes 8 -m condconv train --recipe mobilenet_v2 --data imagenet/`
    - Hardware: 8 GPUs with 256 images each at 16 bits, 16 GB each or more.
    - Expected top-1: 71.6 for `mobilenet_v2_100`, 74.6 for `mobilenet_v2_cc_100_8e`.
    """
    return _config(data, model, _AUTHORS, epochs=300, model_options={"drop_rate": 0.2})


def resnet_50(data: str, model: str = "resnet_cc_50_8e") -> TrainConfig:
    """Return the settings of ResNet-50.

    - Source: dropout before the classifier: paper; its probability, 0.2: timm. AutoAugment and mixup 0.2, and dropping
      experts: the paper, as we recall it; the probability of the latter, 0.1: chosen here, as none is stated. SGD with
      Nesterov's momentum, 0.1 for 256 images after 5 epochs of warm-up, one cosine over 200 epochs, weight decay 1e-4,
      label smoothing 0.1: timm.
    - Command: `accelerate launch --num_processes 8 -m condconv train --recipe resnet_50 --data imagenet/`
    - Hardware: 8 GPUs with 128 images each at 16 bits, 24 GB each or more.
    - Expected top-1: 77.7 for `resnet_50`, 78.6 for `resnet_cc_50_8e`.
    """
    settings: dict[str, Any] = {
        "epochs": 200,
        "batch_size": 1024,
        "optimizer": "nesterov",
        "optimizer_options": {"momentum": 0.9},
        "lr": 0.1 * 1024 / 256,
        "scheduler": "cosine",
        "warmup_epochs": 5,
        "weight_decay": 1e-4,
        "label_smoothing": 0.1,
        "expert_dropout": 0.1 if "_cc_" in model else 0.0,
    }
    return _config(data, model, settings, model_options={"drop_rate": 0.2}, auto_augment="v0", mixup=0.2)


def _config(data: str, model: str, settings: dict[str, Any], **changes: Any) -> TrainConfig:
    return TrainConfig(data=data, model=model, out=f"runs/{model}", **{**_PLACE, **settings, **changes})


RECIPES: dict[str, Callable[..., TrainConfig]] = {
    recipe.__name__: recipe for recipe in (efficientnet_b0, mnasnet_a1, mobilenet_v1, mobilenet_v2, resnet_50)
}
"""By name: `recipe(data)`, or `recipe(data, model)` for a twin."""
