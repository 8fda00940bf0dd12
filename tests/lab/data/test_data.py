import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from condconv.errors import UsageError
from condconv.lab import config
from condconv.lab.data import digits, open_data
from condconv.lab.data.image_data import open_trained
from condconv.lab.data.images import IGNORED
from condconv.lab.data.loading import EpochSampler, batches, create_loader
from condconv.lab.data.preprocessing import IMAGENET, INCEPTION, Normalization, Preprocessing, normalization_of
from condconv.lab.processes import seed_everything
from tests.lab.samples import make_folder, settings

SMALL = Preprocessing(8, 3, 1.0, "bicubic", IMAGENET.mean, IMAGENET.std)


def folder_settings(root, tmp_path, **changes):
    return settings(tmp_path / "run", **({"data": str(root), "image_size": 8, "batch_size": 4} | changes))


def test_a_folder_gives_images_of_the_asked_size_with_the_class_of_their_folder(tmp_path):
    root = make_folder(tmp_path / "data", classes=("10", "9", "2"))
    (root / "val").rename(root / "validation")
    data = open_data(folder_settings(root, tmp_path))
    assert data.class_names == ("2", "9", "10")
    assert (len(data.train), len(data.val)) == (18, 9)
    image, target = data.val[0]
    assert (image.shape, image.dtype, target) == ((3, 8, 8), torch.float32, 0)
    brightness = [data.val[index][0].mean() for index in (0, 3, 6)]
    assert brightness[2] < brightness[1] < brightness[0]  # the fixture made "10" the darkest and "2" the brightest


def test_digits_are_stratified_normalised_and_always_the_same(tmp_path):
    data = open_data(settings(tmp_path))
    pixels = torch.stack([data.train[index][0] for index in range(len(data.train))])
    assert pixels.shape == (898, 1, 8, 8)
    assert abs(pixels.mean()) < 0.02
    assert abs(pixels.std() - 1) < 0.02
    counts = torch.bincount(torch.tensor([data.val[index][1] for index in range(len(data.val))]))
    assert counts.min() >= 87
    assert torch.equal(open_data(settings(tmp_path)).train[5][0], data.train[5][0])
    assert open_data(settings(tmp_path, in_chans=3)).val[0][0].shape == (3, 8, 8)


def test_digits_under_conditions_are_four_views_of_each_digit(tmp_path):
    data, plain = (open_data(settings(tmp_path, data=name)) for name in ("digits-conditions", "digits"))
    pixels = torch.stack([data.train[index][0] for index in range(len(data.train))])
    assert pixels.shape == (4 * 898, 1, 16, 16)
    assert abs(pixels.mean()) < 0.02
    assert abs(pixels.std() - 1) < 0.02
    views = [np.asarray(data.val.read(index)[0]).astype(int) for index in range(4 * 20)]
    for index in range(20):
        image, target = plain.val.read(index)
        one, inverted, turned, noisy = views[4 * index : 4 * index + 4]
        assert [data.val.read(4 * index + view)[1] for view in range(4)] == [target] * 4
        assert (one == np.asarray(image.resize((16, 16), Image.Resampling.BICUBIC))).all()
        assert (inverted == 255 - one).all()
        assert (turned == np.rot90(one)).all()
        middle = (one > 60) & (one < 195)
        assert 30 < (noisy - one)[middle].std() < 100  # clipping takes a part of 80
    noises = [views[4 * index + 3] - views[4 * index] for index in range(20)]
    assert len({noise.tobytes() for noise in noises}) == 20
    again = open_data(settings(tmp_path, data="digits-conditions"))
    assert all(torch.equal(again.val[index][0], data.val[index][0]) for index in (3, 7))


def test_the_settings_know_all_embedded_images():
    assert tuple(digits.EMBEDDED) == config.EMBEDDED


def break_nothing(root):
    shutil.rmtree(root)


def break_layout(root):
    (root / "val").rename(root / "elsewhere")


def break_classes(root):
    (root / "val" / "dog").rename(root / "val" / "wolf")


def break_count(root):
    shutil.rmtree(root / "train" / "dog")
    shutil.rmtree(root / "val" / "dog")


def break_content(root):
    for image in (root / "train" / "dog").iterdir():
        image.unlink()


def break_folders(root):
    for split in ("train", "val"):
        shutil.rmtree(root / split)
        (root / split).mkdir()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (break_nothing, "`data` must be a directory, a tar file or a named dataset, got {root}, which does not exist"),
        (break_layout, "got {root} with no val/ (it holds elsewhere, train)"),
        (break_classes, "only train has dog and only val has wolf"),
        (break_count, "`data` must have at least two classes, got 1 in {root} (cat)"),
        (break_folders, "`data` must hold a folder for each class, got {root}/train without any: put the images of"),
        (break_content, "`data` must have an image in every class folder, got none in {root}/train/dog"),
    ],
)
def test_a_wrong_folder_is_explained(tmp_path, spoil, message):
    root = make_folder(tmp_path / "data")
    spoil(root)
    with pytest.raises(UsageError) as caught:
        open_data(folder_settings(root, tmp_path))
    assert message.format(root=root) in str(caught.value)


def test_a_device_is_there_but_no_folder(tmp_path):
    with pytest.raises(UsageError, match="named dataset, got /dev/null, which is none of these: check the path"):
        open_data(folder_settings("/dev/null", tmp_path))


def test_more_images_an_update_than_there_are_is_refused(tmp_path):
    root = make_folder(tmp_path / "data")
    with pytest.raises(UsageError, match=r"`batch_size` must be at most the number of training images \(12\), got 13"):
        open_data(folder_settings(root, tmp_path, batch_size=13))


# One in a worker, for which the end of a test waits some seconds: what is read makes no difference there.
@pytest.mark.parametrize(("content", "workers"), [(b"", 0), (b"no image", 0), ("cut", 0), ("cut", 1)])
def test_an_unreadable_image_is_named_in_one_line(tmp_path, content, workers):
    root = make_folder(tmp_path / "data")
    bad = root / "train" / "dog" / "3.png"
    bad.write_bytes(bad.read_bytes()[:-40] if content == "cut" else content)
    data = open_data(folder_settings(root, tmp_path))
    with pytest.raises(UsageError) as caught:
        list(batches(create_loader(data.train, 4, workers=workers)))
    assert str(caught.value).startswith(f"`data` must hold readable images, got {bad} (")
    assert "--on-bad-image skip" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_skipped_image_keeps_the_batch_full_and_counts_nowhere(tmp_path):
    root = make_folder(tmp_path / "data")
    (root / "val" / "dog" / "2.png").write_bytes(b"no image")
    data = open_data(folder_settings(root, tmp_path, on_bad_image="skip"))
    images, targets = next(batches(create_loader(data.val, 6)))
    assert targets.tolist() == [0, 0, 0, 1, 1, IGNORED]
    assert torch.equal(images[5], images[0])  # the next readable one, around the end


def test_every_seed_has_an_order_and_small_ones_have_kept_theirs():
    """A generator takes numbers below 2^64: a seed whose product with the epochs' distance is larger is folded."""
    generator = torch.Generator().manual_seed(5 * 1_000_003 + 2)
    orders = []
    for seed in (5, 30_000_000_000_000, 2**63 - 1):
        sampler = EpochSampler(10, 10, seed)
        sampler.epoch = 2
        orders.append(list(sampler))
        assert sorted(orders[-1]) == list(range(10))
    assert orders[0] == torch.randperm(10, generator=generator).tolist()
    assert orders[1] != orders[2]


def test_the_order_depends_on_seed_and_epoch_alone_and_gives_whole_updates():
    def order(seed, epoch):
        sampler = EpochSampler(10, 4, seed)
        sampler.epoch = epoch
        return list(sampler)

    assert order(0, 1) == order(0, 1)
    assert len({tuple(order(seed, epoch)) for seed, epoch in ((0, 1), (0, 2), (1, 1))}) == 3
    assert len(order(0, 1)) == len(set(order(0, 1))) == 8


def test_validation_takes_the_class_folders_themselves_and_the_order_of_the_network(tmp_path):
    root = make_folder(tmp_path / "data")
    for place in (root, root / "val"):
        data = open_trained(str(place), ("dog", "cat"), SMALL, skip=False)
        assert [data[index][1] for index in range(6)] == [1, 1, 1, 0, 0, 0]
        assert data[0][0].mean() < data[5][0].mean()  # dogs, class 0 of the network, are the brighter ones


def test_validation_with_other_classes_is_refused(tmp_path):
    root = make_folder(tmp_path / "data")
    with pytest.raises(UsageError, match=r"network was trained on \(2: cat, fox\), got .* with 2: cat, dog"):
        open_trained(str(root), ("cat", "fox"), SMALL, skip=False)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"data": "x"}, IMAGENET),
        ({"data": "x", "normalization": "inception"}, INCEPTION),
        ({"data": "x", "pretrained": True, "model": "resnet_cc_50_8e"}, IMAGENET),
        # timm says of the authors' AdvProp and of its Inception-like networks: 0.5 and 0.5.
        ({"data": "x", "pretrained": True, "model": "tf_efficientnet_b8"}, INCEPTION),
        (
            {
                "data": "x",
                "pretrained": True,
                "model": "tf_efficientnet_b1",
                "model_options": {"pretrained_cfg": "ap_in1k"},
            },
            INCEPTION,
        ),
        ({"data": "digits", "in_chans": 1}, Normalization((0.3053,), (0.3761,))),
        ({"data": "digits", "in_chans": 1, "normalization": "inception"}, Normalization((0.5,), (0.5,))),
    ],
)
def test_pixels_are_normalised_by_what_is_asked_for_then_the_weights_then_the_data(tmp_path, changes, expected):
    config = settings(tmp_path, **changes)
    assert normalization_of(config, config.in_chans or 3) == expected


def test_a_tag_that_there_is_not_is_named_with_where_they_are_listed(tmp_path):
    options = {"pretrained_cfg": "in2k"}
    config = settings(tmp_path, data="x", pretrained=True, model="tf_efficientnet_b0", model_options=options)
    with pytest.raises(UsageError, match=r"`pretrained_cfg` must be a tag that timm has for .*list_pretrained"):
        normalization_of(config, 3)


def test_flips_and_crops_change_training_images_and_no_others(tmp_path):
    root = make_folder(tmp_path / "data")
    shutil.copytree(root / "train", root / "val", dirs_exist_ok=True)  # the same images in both

    def images(**changes):
        data = open_data(folder_settings(root, tmp_path, **changes))
        return torch.stack([data.train[index][0] for index in range(12)]), torch.stack(
            [data.val[i][0] for i in range(12)]
        )

    train, val = images(hflip=1.0, min_crop=1.0)
    assert torch.equal(train, val.flip(-1))
    train, val = images(hflip=0.0, min_crop=1.0)
    assert torch.equal(train, val)
    for change in (
        {"min_crop": 0.3},
        {"color_jitter": 0.4},
        {"auto_augment": "rand-m9-mstd0.5"},
        {"random_erasing": 1.0},
    ):
        train, changed = images(**{"hflip": 0.0, "min_crop": 1.0} | change)
        assert torch.equal(changed, val)
        assert not torch.equal(train, val), change


def test_images_kept_in_memory_are_those_that_are_read(tmp_path):
    root = make_folder(tmp_path / "data")
    (root / "train" / "cat" / "0.png").write_bytes(b"no image")
    read, kept = (
        open_data(folder_settings(root, tmp_path, on_bad_image="skip", cache_images=each)) for each in (0.0, 0.001)
    )
    for ours, theirs in ((kept.train, read.train), (kept.val, read.val)):
        for index in range(len(theirs)):
            pairs = []
            for images in (ours, theirs):
                seed_everything(0, index, 0)  # of crops and flips
                pairs.append(images[index])
            assert torch.equal(pairs[0][0], pairs[1][0])
            assert pairs[0][1] == pairs[1][1]
    shutil.rmtree(root)
    assert kept.train[3][0].shape == (3, 8, 8)  # no file is read again


def test_images_that_do_not_fit_are_an_error_before_training(tmp_path):
    root = make_folder(tmp_path / "data")
    image = 12 * 12 * 3 / 2**30
    for room, found in ((4.5, "4 of 12"), (13.5, "1 of 6")):  # the room is for both splits
        with pytest.raises(UsageError, match=f"`cache_images` must be enough .*, got room for {found}: give more GiB"):
            open_data(folder_settings(root, tmp_path, cache_images=room * image))
    with pytest.raises(UsageError, match="`workers` must be 0 with `cache_images`, got 2: the images are in"):
        folder_settings(root, tmp_path, cache_images=1.0, workers=2)
