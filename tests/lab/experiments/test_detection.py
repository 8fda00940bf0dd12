import json
import os
import shutil
from dataclasses import asdict, replace

import pytest
import torch
from PIL import Image
from torch import nn

from condconv.errors import TrainingError, UsageError
from condconv.files.checkpoint_format import open_checkpoint, to_bytes
from condconv.lab.config import TrainConfig
from condconv.lab.experiments.detection import create_detector, saved, train_detector
from condconv.lab.experiments.detection.coco import CocoImages
from condconv.lab.experiments.detection.network import detector_costs
from condconv.lab.processes import only_here
from condconv.models import create_model
from condconv.nn import ConditionalLayer

SQUARE, BAR = 7, 3  # ids of categories, as sparse and unordered as COCO's


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    """Return a directory in COCO's layout: six training and three validation images, one of them without a box."""
    root = tmp_path_factory.mktemp("coco")
    generator = torch.Generator().manual_seed(0)
    (root / "annotations").mkdir()
    for split, number in (("train", 6), ("val", 3)):
        (root / f"{split}2017").mkdir()
        images, annotations = [], []
        for index in range(number):
            pixels = torch.randint(0, 255, (40, 60, 3), generator=generator, dtype=torch.uint8)
            Image.fromarray(pixels.numpy()).save(root / f"{split}2017" / f"{index}.png")
            images.append({"id": 100 + index, "file_name": f"{index}.png", "width": 60, "height": 40})
            if index < number - 1:
                box = [5, 10, 20, 20] if index % 2 else [30, 2, 10, 30]
                annotations.append({"image_id": 100 + index, "category_id": SQUARE if index % 2 else BAR, "bbox": box})
        annotations += [
            {"image_id": 100, "category_id": BAR, "bbox": [0, 0, 60, 40], "iscrowd": 1},
            *(
                [{"image_id": 100, "category_id": BAR, "bbox": [4, 4, 0, 9]}] if split == "train" else []
            ),  # without area
        ]
        for identity, each in enumerate(annotations):
            each |= {"id": identity + 1, "area": each["bbox"][2] * each["bbox"][3], "iscrowd": each.get("iscrowd", 0)}
        categories = [{"id": SQUARE, "name": "square"}, {"id": BAR, "name": "bar"}]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (root / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(content))
    return root


def _config(coco, out, **changes):
    settings = {"epochs": 1, "batch_size": 2, "optimizer": "sgd", "lr": 0.001, "image_size": 64, "device": "cpu"}
    return TrainConfig(data=str(coco), model="mobilenet_v1_cc_025_2e", out=str(out), **{**settings, **changes})


def test_images_and_boxes(coco):
    train, val = CocoImages(coco, "train", augment=False), CocoImages(coco, "val", augment=False)
    assert (len(train), len(val)) == (5, 3)  # an image without a box teaches nothing, and counts in validation
    assert train.class_names == ("bar", "square")  # by id
    image, target = train[1]
    assert image.shape == (3, 40, 60)
    assert 0 <= float(image.min()) <= float(image.max()) <= 1
    assert target["boxes"].tolist() == [[5, 10, 25, 30]]
    assert target["labels"].tolist() == [2]
    assert train[0][1]["labels"].tolist() == [1]  # neither the crowd nor the box without area
    assert val[2][1]["boxes"].shape == (0, 4)


def test_augmented_boxes_stay_inside_the_image(coco):
    images = CocoImages(coco, "train", augment=True)
    torch.manual_seed(0)
    for _ in range(5):
        for image, target in (images[index] for index in range(len(images))):
            height, width = image.shape[1:]
            boxes = target["boxes"]
            assert type(boxes) is torch.Tensor
            assert bool((boxes >= 0).all())
            assert bool((boxes[:, 2::4] <= width).all())
            assert bool((boxes[:, 3::4] <= height).all())
            assert len(boxes) == len(target["labels"])


def test_detections_that_are_the_truth_score_one(coco):
    val = CocoImages(coco, "val", augment=False)
    truth = {}
    for index in range(len(val)):
        target = val[index][1]
        truth[target["image_id"]] = {**target, "scores": torch.ones(len(target["labels"]))}
    assert val.mean_average_precision(truth) == pytest.approx(1.0)
    moved = {identity: {**each, "boxes": each["boxes"] + 30} for identity, each in truth.items()}
    assert val.mean_average_precision(moved) == 0.0
    assert val.mean_average_precision({}) == 0.0


def _damaged(coco, root, split, damage):
    """Copies the images, with annotations of a split that are changed; returns their directory."""
    shutil.copytree(coco, root)
    path = root / "annotations" / f"instances_{split}2017.json"
    content = json.loads(path.read_text())
    damage(content)
    path.write_text(json.dumps(content))
    return root


def without_what_training_does_not_read(content):
    for each in content["annotations"]:
        for name in ("id", "area", *(() if each.get("iscrowd") else ("iscrowd",))):
            each.pop(name, None)


def areas_of_other_kinds(content):
    areas: list[object] = [None, "large", [], -7]
    for each, area in zip(content["annotations"], areas * 9, strict=False):
        each.update(area=area, iscrowd=each.get("iscrowd") or None)


def ids_that_are_one(content):
    for each in content["annotations"]:
        each["id"] = 0


def boxes_of_other_images(content):
    content["annotations"] += [{**content["annotations"][0], "image_id": 998}]


@pytest.mark.parametrize(
    "damage", [without_what_training_does_not_read, areas_of_other_kinds, ids_that_are_one, boxes_of_other_images]
)
def test_the_score_does_not_depend_on_what_is_not_checked(coco, tmp_path, damage):
    """pycocotools fails without these after the first epoch, or finds no object that has the id 0."""
    honest = CocoImages(coco, "val", augment=False)
    found = {}
    for index in range(len(honest)):
        target = honest[index][1]
        boxes = target["boxes"] + torch.tensor([1.0, 0, 1, 0])
        found[target["image_id"]] = {**target, "boxes": boxes, "scores": torch.ones(len(boxes))}
    expected = honest.mean_average_precision(found)
    assert 0.1 < expected < 1
    changed = CocoImages(_damaged(coco, tmp_path / "coco", "val", damage), "val", augment=False)
    assert changed.mean_average_precision(found) == pytest.approx(expected)


@pytest.mark.parametrize("name", ["/etc/hosts.png", "../train2017/0.png", "a/../../b.png"])
def test_annotations_do_not_choose_files_elsewhere(coco, tmp_path, name):
    root = _damaged(coco, tmp_path / "coco", "val", lambda content: content["images"][0].update(file_name=name))
    with pytest.raises(UsageError, match="which is outside the directory of the images") as caught:
        CocoImages(root, "val", augment=False)
    assert name in str(caught.value)


def test_the_detector_has_six_maps_and_conditional_features():
    detector = create_detector("mobilenet_v1_cc_050_8e", 90)
    maps = detector.backbone(torch.zeros(2, 3, 300, 300))
    assert [tuple(each.shape[1:]) for each in maps.values()] == [
        (256, 19, 19),
        (512, 10, 10),
        (512, 5, 5),
        (256, 3, 3),
        (256, 2, 2),
        (128, 1, 1),
    ]
    assert any(isinstance(module, ConditionalLayer) for module in detector.backbone.body.modules())


def test_costs_are_those_of_the_convolutions():
    detector = create_detector("mobilenet_v1_025", 2)
    params, madds = detector_costs(detector, 300)
    assert params == sum(parameter.numel() for parameter in detector.parameters())
    seen = []

    def record(module, inputs, output):
        seen.append(output[0].numel() * module.weight[0].numel())

    for module in detector.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(record)
    detector.eval()([torch.zeros(3, 300, 300)])
    assert madds == sum(seen)


def test_interrupted_and_resumed_is_as_uninterrupted(coco, tmp_path):
    whole = train_detector(_config(coco, tmp_path / "whole", epochs=2), progress=False)
    part = _config(coco, tmp_path / "part", epochs=2)

    calls = []

    def stop(self, detections):
        calls.append(len(detections))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(self, detections)

    def count(self, detections):
        calls.append(0)
        return original(self, detections)

    original = CocoImages.mean_average_precision
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CocoImages, "mean_average_precision", stop)
        with pytest.raises(KeyboardInterrupt, match="1 of 2 epochs are saved"):
            train_detector(part, progress=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CocoImages, "mean_average_precision", count)
        resumed = train_detector(part, progress=False)
    paths = [tmp_path / name / "last.safetensors" for name in ("whole", "part")]
    states = [open_checkpoint(path, "detector").read("model") for path in paths]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert [replace(each, seconds=0) for each in resumed.metrics] == [
        replace(each, seconds=0) for each in whole.metrics
    ]
    lines = [json.loads(line) for line in (tmp_path / "part" / "metrics.jsonl").read_text().splitlines()]
    assert lines == [asdict(each) for each in resumed.metrics]
    assert calls == [3, 3, 0]  # the second epoch alone was done again
    with pytest.raises(UsageError, match="`out` must be a new directory or one with a run of the same settings"):
        train_detector(replace(part, lr=0.5), progress=False)


@pytest.mark.parametrize(
    ("break_", "message"),
    [
        (
            lambda root: (root / "annotations" / "instances_val2017.json").unlink(),
            "one annotations/instances_val*.json, got 0",
        ),
        (
            lambda root: (root / "annotations" / "instances_train2017.json").write_text("{"),
            "annotations in COCO's format",
        ),
        (
            lambda root: [path.write_bytes(b"no picture") for path in (root / "train2017").iterdir()],
            "`data` must have readable images, got",
        ),
    ],
)
def test_data_that_is_not_coco_s(coco, tmp_path, break_, message):
    root = tmp_path / "coco"
    shutil.copytree(coco, root)
    break_(root)
    with pytest.raises(UsageError) as error:
        train_detector(_config(root, tmp_path / "out"), progress=False)
    assert message in str(error.value)


def damage_categories(content):
    content["categories"].append({"id": BAR, "name": "rod"})


def damage_names(content):
    del content["categories"][1]["name"]


def damage_boxes(content):
    content["annotations"][0]["bbox"][2] = float("nan")


def damage_sizes(content):
    content["annotations"][0]["bbox"] = [0, 0, 1e300, 4]


def damage_labels(content):
    content["annotations"][1]["category_id"] = 99


def damage_files(content):
    content["images"][0]["file_name"] = ["0.png"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_categories, "the id 3 is there twice, for 'bar' and 'rod'"),
        (damage_names, "it lacks 'name'"),
        (damage_boxes, "the box [30, 2, nan, 30] of the image 100"),
        (damage_sizes, "the box [0, 0, 1e+300, 4] of the image 100"),
        (damage_labels, "it lacks 99"),
        (damage_files, "id 100 with the file_name ['0.png']"),
        (lambda content: content.update(images=content["images"] * 2), "the id 100 is there twice, for '0.png' and"),
        (lambda content: content.pop("images"), "it lacks 'images'"),
        (lambda content: content.update(annotations=[3]), "not subscriptable"),
    ],
)
def test_annotations_that_are_damaged(coco, tmp_path, damage, message):
    root = _damaged(coco, tmp_path / "coco", "train", damage)
    with pytest.raises(UsageError, match="`data` must have annotations in COCO's format, got ") as caught:
        CocoImages(root, "train", augment=False)
    assert message in str(caught.value)


def test_a_checkpoint_that_is_damaged(tmp_path):
    detector = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    optimizer = torch.optim.SGD(detector.parameters(), 0.1, momentum=0.9)
    detector(torch.ones(2, 3, 4, 4)).sum().backward()
    optimizer.step()
    config, data = _config("data", tmp_path), saved.DetectionData(("bar", "square"), 5)
    epoch = saved.DetectionMetrics(1, 0.1, 2.0, 0.25, 3.0)
    saved.save(config, data, (epoch,), detector, optimizer, None)
    assert saved.restore_(config, data, detector, optimizer, None) == (epoch,)
    path = tmp_path / "last.safetensors"
    stored = open_checkpoint(path, "detector")
    tensors = stored.read("model", "optimizer", "group")
    header = {name: each for name, each in stored.header.items() if name not in ("format", "digests")}
    less = {name: each for name, each in tensors.items() if name != "model.0.bias"}
    other = {"state": {}, "param_groups": [{"params": [0]}]}
    for kept, changes, message in (
        (less, {}, "`checkpoint` must hold the weights of this network, got .*it lacks 0.bias"),
        (tensors, {"optimizer": other}, "`checkpoint` must hold the state of its own optimizer, got"),
        (tensors | {"model.0.bias": torch.ones(2**20)}, {}, "of another shape 0.bias"),
        (tensors | {"group.0.x": torch.ones(2**20)}, {}, "`checkpoint` must hold the state of an optimizer of this ne"),
        (
            tensors,
            {"categories": ["bar", "rod"]},
            "`data` must have the categories and the number of images of the run",
        ),
        (tensors, {"config": header["config"] | {"lr": 0.5}}, "differs in lr: 0.001, not 0.5"),
    ):
        path.write_bytes(to_bytes(header | changes, kept))
        with pytest.raises(UsageError, match=message):
            saved.restore_(config, data, detector, optimizer, None)
    path.write_bytes(to_bytes(header, tensors | {"model.0.bias": torch.full((4,), torch.inf)}))
    with pytest.raises(TrainingError, match="not all values of 0.bias are finite; put an earlier copy in its place"):
        saved.restore_(config, data, detector, optimizer, None)
    content = bytearray(to_bytes(header, tensors))
    content[-10] ^= 4
    path.write_bytes(content)
    with pytest.raises(UsageError, match="damaged in its tensors"):
        saved.restore_(config, data, detector, optimizer, None)


def test_a_batch_larger_than_the_data(coco, tmp_path):
    with pytest.raises(UsageError, match=r"`batch_size` must be at most the number of images with boxes \(5\), got 8"):
        train_detector(_config(coco, tmp_path, batch_size=8), progress=False)


def test_settings_that_do_not_apply_are_refused(coco, tmp_path):
    with pytest.raises(UsageError, match=r"`mixup` must be left as it is \(0.0\) for a detector, got 0.2"):
        train_detector(_config(coco, tmp_path, mixup=0.2), progress=False)


def test_data_options_and_options_of_no_network_are_refused(coco, tmp_path):
    with pytest.raises(UsageError, match=r"`data_options` must be left as it is \({}\) for a detector"):
        train_detector(_config(coco, tmp_path, data_options={"input_key": "a"}), progress=False)
    with pytest.raises(
        UsageError, match="`model_options` must be what mobilenet_v1_cc_025_2e can be built with, got colour "
    ):
        train_detector(_config(coco, tmp_path, model_options={"colour": "red"}), progress=False)


def test_a_run_goes_on_with_its_own_data_only(coco, tmp_path):
    root, out = tmp_path / "coco", tmp_path / "out"
    shutil.copytree(coco, root)
    train_detector(_config(root, out), progress=False)
    path = root / "annotations" / "instances_train2017.json"
    content = json.loads(path.read_text())
    kept = content["images"][0]["id"]
    content["annotations"] = [each for each in content["annotations"] if each["image_id"] != kept]
    path.write_text(json.dumps(content))
    with pytest.raises(UsageError, match=r"the run in .*out \(2 and 5\), got 2 and 4: restore the annotations"):
        train_detector(_config(root, out), progress=False)


def test_a_classifier_s_features_to_start_from(coco, tmp_path):
    classifier = create_model("mobilenet_v1_cc_025_2e", num_classes=7)
    torch.save(classifier.state_dict(), tmp_path / "classifier.pth")
    config = _config(coco, tmp_path / "out", lr=1e-30, init_from=str(tmp_path / "classifier.pth"))
    train_detector(config, progress=False)
    trained = open_checkpoint(tmp_path / "out" / "last.safetensors").read("model")
    for name, value in classifier.named_parameters():
        if name.startswith("blocks"):
            torch.testing.assert_close(trained[f"model.backbone.body.{name}"], value, rtol=0, atol=1e-20)


def test_a_loss_that_is_not_finite_keeps_what_is_trained(coco, tmp_path):
    config = _config(coco, tmp_path)
    object.__setattr__(config, "lr", 1e38)  # higher than the rule lets through, so that one update is enough
    with pytest.raises(TrainingError, match="became (nan|inf) in epoch 1; 0 of 1 epochs are saved in .*lower --lr"):
        train_detector(config, progress=False)


def test_a_checkpoint_that_is_cut_off_is_named(coco, tmp_path):
    (tmp_path / "last.safetensors").write_bytes(b"PK")
    with pytest.raises(UsageError, match=r"`checkpoint` must be a whole safetensors file, got .*last\.safetensors \("):
        train_detector(_config(coco, tmp_path), progress=False)


def test_a_directory_that_another_run_holds(coco, tmp_path):
    with only_here(tmp_path), pytest.raises(UsageError, match="no other run is using"):
        train_detector(_config(coco, tmp_path), progress=False)


@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_a_link_or_a_pipe_where_a_run_writes_is_refused_before_it_begins(coco, tmp_path, kind):
    path = tmp_path / "out" / "metrics.csv"
    path.parent.mkdir()
    (tmp_path / "theirs").write_text("theirs")
    if kind == "link":
        path.symlink_to(tmp_path / "theirs")
    else:
        os.mkfifo(path)
    with pytest.raises(UsageError, match=rf"`out` must not have other things .*metrics.csv, a {kind}"):
        train_detector(_config(coco, tmp_path / "out"), progress=False)
    assert (tmp_path / "theirs").read_text() == "theirs"


def test_annotations_without_an_end_are_refused(coco, tmp_path):
    root = tmp_path / "coco"
    shutil.copytree(coco, root)
    path = root / "annotations" / "instances_train2017.json"
    path.unlink()
    path.symlink_to("/dev/zero")
    with pytest.raises(UsageError, match="`data` must have annotations in COCO's format, got .*not a regular file"):
        CocoImages(root, "train", augment=False)
