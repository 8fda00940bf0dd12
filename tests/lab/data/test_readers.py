"""Data that is not one folder per class: tar files, shards, torchvision's and Hugging Face's datasets, odd images."""

import gc
import gzip
import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from condconv.errors import UsageError
from condconv.lab.data import open_data
from condconv.lab.data.images import IGNORED, in_mode
from condconv.lab.data.loading import batches, create_loader
from condconv.lab.data.tars import members
from condconv.lab.train import train
from tests.lab.samples import build, make_folder, settings


def small(data, tmp_path, **changes):
    return settings(tmp_path / "run", **({"data": str(data), "image_size": 8, "batch_size": 4} | changes))


def make_tar(folder: Path, path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        archive.add(folder, arcname=folder.name)


def make_shard(path: Path, samples: dict[str, bytes]) -> None:
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in samples.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def png(level: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (10, 10), (level,) * 3).save(file, "PNG")
    return file.getvalue()


def samples(levels: dict[int, int], start: int = 0) -> dict[str, bytes]:
    """Samples of one image for each class of a level, named by numbers."""
    pairs = [(f"{start + n:04d}", level, label) for n, (level, label) in enumerate(levels.items())]
    return {f"{key}.png": png(level) for key, level, _ in pairs} | {
        f"{key}.cls": str(label).encode() for key, _, label in pairs
    }


def same_data(ours, theirs):
    for split in ("train", "val"):
        one, other = getattr(ours, split), getattr(theirs, split)
        assert len(one) == len(other)
        for index in range(len(one)):
            assert one.read(index)[1] == other.read(index)[1]
            assert one.read(index)[0].tobytes() == other.read(index)[0].tobytes()


@pytest.fixture
def folder(tmp_path):
    return make_folder(tmp_path / "data", classes=("10", "9", "Käse 猫"))


def test_tar_files_give_what_the_folder_gives(tmp_path, folder):
    tars = tmp_path / "tars"
    tars.mkdir()
    for split in ("train", "val"):
        make_tar(folder / split, tars / f"{split}.tar")
    whole = open_data(small(folder, tmp_path))
    assert whole.class_names == ("9", "10", "Käse 猫")
    same_data(whole, open_data(small(tars, tmp_path)))
    apart = small(tars / "train.tar", tmp_path, val_data=str(tars / "val.tar"))
    same_data(whole, open_data(apart))
    same_data(whole, open_data(small(folder / "train", tmp_path, val_data=str(folder / "val"))))


def test_workers_read_a_tar_file_side_by_side(tmp_path, folder):
    make_tar(folder / "val", folder / "val.tar")
    data = open_data(small(folder / "train", tmp_path, val_data=str(folder / "val.tar")))
    data.val[0]  # what is opened here must not be shared
    loaded = torch.cat([images for images, _ in batches(create_loader(data.val, 2, workers=2))])
    alone = torch.stack([data.val[index][0] for index in range(len(data.val))])
    assert torch.equal(loaded, alone)


def test_an_unreadable_image_in_a_tar_file_is_named(tmp_path, folder):
    (folder / "train" / "9" / "2.png").write_bytes(b"no image")
    make_tar(folder / "train", folder / "all.tar")
    data = open_data(small(folder / "all.tar", tmp_path, val_data=str(folder / "val")))
    with pytest.raises(UsageError, match=r"readable images, got .*all\.tar/train/9/2\.png \(cannot identify"):
        list(batches(create_loader(data.train, 4)))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.tar", b"no tar", "`data` must be a whole tar file, got {path}"),
        ("x.tar", None, "`data` must have images in folders named for their classes, got {path} without any"),
        ("x.zip", b"PK", "`data` must be a directory or a .tar file, got {path}"),
    ],
)
def test_a_wrong_tar_file_is_explained(tmp_path, folder, name, content, message):
    path = tmp_path / name
    if content is None:
        make_shard(path, {"a/readme.txt": b"none"})
    else:
        path.write_bytes(content)
    with pytest.raises(UsageError) as caught:
        open_data(small(path, tmp_path, val_data=str(folder / "val")))
    assert message.format(path=path) in str(caught.value)
    with pytest.raises(UsageError, match="`val_data` must be given when `data` is a tar file"):
        open_data(small(path, tmp_path))


def test_shards_are_read_at_random_in_the_order_of_their_files(tmp_path):
    root = tmp_path / "shards"
    make_shard(root / "x-train-0001.tar", samples({10: 1, 20: 0}, start=2))
    make_shard(root / "x-train-0000.tar", samples({30: 1, 40: 0}))
    make_shard(root / "x-val-0000.tar", samples({50: 0, 60: 1}))
    (root / "classes.txt").write_text("cat\ndog\n")
    data = open_data(small(f"wds/{root}", tmp_path))
    assert data.class_names == ("cat", "dog")
    read = [data.train.read(index) for index in (3, 0, 2, 1)]
    assert [(image.getpixel((0, 0))[0], target) for image, target in read] == [(20, 0), (30, 1), (10, 1), (40, 0)]
    assert train(small(f"wds/{root}", tmp_path, epochs=1, workers=1), build=build).metrics[0].skipped_images == 0


def test_shards_without_names_call_the_classes_by_their_numbers(tmp_path):
    root = tmp_path / "shards"
    make_shard(root / "train.tar", samples({10: 7, 20: 3}))
    make_shard(root / "test.tar", samples({30: 3, 40: 7}))
    data = open_data(small(f"wds/{root}", tmp_path, batch_size=2))
    assert data.class_names == ("3", "7")
    assert [data.train.read(index)[1] for index in (0, 1)] == [1, 0]


def test_an_unreadable_image_in_a_shard_is_named_and_left_out_as_asked(tmp_path):
    root = tmp_path / "shards"
    make_shard(root / "train.tar", samples({10: 0, 20: 1}) | {"0001.png": b"no image"})
    make_shard(root / "val.tar", samples({30: 0, 40: 1}))
    with pytest.raises(UsageError, match=r"readable images, got .*train\.tar/0001\.png \("):
        open_data(small(f"wds/{root}", tmp_path, batch_size=2)).train[1]
    skipping = open_data(small(f"wds/{root}", tmp_path, batch_size=2, on_bad_image="skip"))
    assert skipping.train[1][1] == IGNORED


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: (root / "train.tar").unlink(), "shards *train*.tar, got {root} with none"),
        (lambda root: (root / "train.tar").write_bytes(b"no tar"), "`data` must be whole tar files, got {root}/train"),
        (lambda root: make_shard(root / "train.tar", {"a.txt": b""}), "got none in {root}/train.tar"),
        (lambda root: make_shard(root / "train.tar", {"a.png": png(1)}), "got one of the two for a in {root}/train"),
        (
            lambda root: make_shard(root / "train.tar", samples({1: -1, 2: 0})),
            "a class number from 0 to 2147483647 in each .cls, got b'-1' in {root}/train.tar/0000.cls",
        ),
        (lambda root: (root / "classes.txt").write_text("cat\n"), "with 1 lines and classes up to 1"),
        (lambda root: (root / "classes.txt").write_text("cat\ncat\n"), "a name of its own for each class"),
    ],
)
def test_wrong_shards_are_explained(tmp_path, spoil, message):
    root = tmp_path / "shards"
    for split in ("train", "val"):
        make_shard(root / f"{split}.tar", samples({10: 0, 20: 1}))
    spoil(root)
    with pytest.raises(UsageError) as caught:
        open_data(small(f"wds/{root}", tmp_path, batch_size=2))
    assert message.format(root=root) in str(caught.value)


_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def make_mnist(root: Path) -> None:
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for split, count in (("train", 8), ("t10k", 4)):
        sizes = b"".join(size.to_bytes(4, "big") for size in (count, 28, 28))
        pixels = bytes(28 * 28 * [40]) + bytes(28 * 28 * [90])
        (raw / f"{split}-images-idx3-ubyte").write_bytes(bytes([0, 0, 8, 3]) + sizes + pixels * (count // 2))
        labels = bytes([0, 1]) * (count // 2)
        (raw / f"{split}-labels-idx1-ubyte").write_bytes(bytes([0, 0, 8, 1]) + count.to_bytes(4, "big") + labels)


def test_torchvision_reads_what_is_there(tmp_path):
    make_mnist(tmp_path / "files")
    config = small("torch/mnist", tmp_path, data_dir=str(tmp_path / "files"), in_chans=1)
    data = open_data(config)
    assert data.class_names[0] == "0 - zero"
    assert (len(data.train), len(data.val), len(data.class_names)) == (8, 4, 10)
    image, target = data.train.read(1)
    assert (image.getpixel((3, 3)), target) == (90, 1)


def test_options_are_those_of_the_dataset_that_takes_them(tmp_path):
    make_mnist(tmp_path / "files")
    for digit, name in enumerate(_DIGITS):
        folder = tmp_path / "own" / f"{digit} - {name}"
        folder.mkdir(parents=True)
        Image.new("L", (28, 28)).save(folder / "0.png")
    named: dict[str, Any] = {"data_dir": str(tmp_path / "files"), "in_chans": 1}
    validated = open_data(small("torch/mnist", tmp_path, val_data=str(tmp_path / "own"), **named))
    assert (len(validated.train), len(validated.val)) == (8, 10)
    trained = open_data(small(tmp_path / "own", tmp_path, val_data="torch/mnist", **named))
    assert (len(trained.train), len(trained.val)) == (10, 4)


@pytest.mark.parametrize(
    ("data", "changes", "message"),
    [
        ("torch/mnist", {}, "`data_dir` must say where the files are"),
        (
            "torch/wings",
            {"data_dir": "x"},
            "`data` must name a dataset of torchvision's that timm knows",
        ),
        ("digits", {"data_dir": "x"}, "`data_dir` must be given with torch/ or hfds/ only, got 'x' with 'digits'"),
        (
            "digits",
            {"data_options": {"input_key": "a"}},
            "`data_options` must be given with torch/ or hfds/ only, got {'input_key': 'a'} with 'digits'",
        ),
        (
            "torch/imagenet",
            {"data_dir": "nowhere"},
            "must be in --data-dir or within reach, got torch/imagenet in now",
        ),
    ],
)
def test_a_wrong_name_is_explained(tmp_path, data, changes, message):
    with pytest.raises(UsageError) as caught:
        open_data(small(data, tmp_path, **changes))
    assert message in str(caught.value)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return make_folder(tmp_path / "hub", classes=("cat", "dog"))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_hugging_face_gives_what_the_folder_gives(tmp_path, hub):
    config = small(f"hfds/{hub}", tmp_path, data_dir=str(tmp_path / "cache"))
    named, plain = open_data(config), open_data(small(hub, tmp_path))
    assert named.class_names == plain.class_names == ("cat", "dog")
    for ours, theirs in ((named.train, plain.train), (named.val, plain.val)):
        pictures = [
            sorted((read[1], read[0].tobytes()) for read in map(each.read, range(len(each)))) for each in (ours, theirs)
        ]
        assert pictures[0] == pictures[1]
    with pytest.raises(UsageError, match="images in the column 'img' and a ClassLabel in the column 'label'"):
        open_data(small(f"hfds/{hub}", tmp_path, data_dir=str(tmp_path / "cache"), data_options={"input_key": "img"}))
    with pytest.raises(UsageError, match="got hfds/.*val_split=...") as caught:
        open_data(small(f"hfds/{hub}", tmp_path, data_dir=str(tmp_path / "cache"), data_options={"val_split": "none"}))
    assert "none" in str(caught.value)


@pytest.mark.parametrize(
    ("path", "text", "message"),
    [
        (
            "README.md",
            '---\nconfigs: !!python/object/apply:os.system ["touch run"]\n---\n',
            "could not determine a constr",
        ),
        # What datasets says of it depends on its version.
        ("train/metadata.csv", "file_name,label\n../../../../etc/passwd,a\n", "name the split and columns by --data-o"),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_a_hostile_folder_of_hugging_face_is_one_sentence(tmp_path, hub, monkeypatch, path, text, message):
    monkeypatch.chdir(tmp_path)
    (hub / path).write_text(text)
    with pytest.raises(UsageError, match="`data` must be a dataset with images and classes, got hfds/") as caught:
        open_data(small(f"hfds/{hub}", tmp_path, data_dir=str(tmp_path / "cache")))
    assert message in str(caught.value)
    del caught
    gc.collect()  # of a file that datasets leaves open: the warning belongs to this test, which ignores it
    assert not (tmp_path / "run").exists()


def test_every_kind_of_pixel_is_read_in_8_bits():
    """16 bits keep their upper half: 0x80FF is 128. Pillow alone would make it 255."""
    sixteen = Image.fromarray(np.array([[0, 0x00FF], [0x80FF, 0xFFFF]], dtype=np.uint16))
    assert list(in_mode(sixteen, "L").tobytes()) == [0, 0, 128, 255]
    assert list(in_mode(sixteen, "RGB").tobytes()) == [0, 0, 0, 0, 0, 0, 128, 128, 128, 255, 255, 255]
    wide = Image.fromarray(np.array([[0, 0x80FF]], dtype=np.int32))
    assert list(in_mode(wide, "L").tobytes()) == [0, 128]
    for mode, pixel, grey in (("CMYK", (0, 0, 0, 0), 255), ("RGBA", (9, 9, 9, 0), 9), ("1", 1, 255), ("LA", (7, 1), 7)):
        image = Image.new(mode, (1, 1), pixel)
        assert list(in_mode(image, "RGB").tobytes()) == [grey] * 3, mode
    palette = Image.new("P", (1, 1), 0)
    palette.info["transparency"] = b"\0"
    assert in_mode(palette, "RGB").mode == "RGB"  # Pillow would warn
    with pytest.raises(ValueError, match="no known range"):
        in_mode(Image.new("F", (1, 1)), "RGB")


def test_an_image_without_a_class_is_refused(tmp_path, folder):
    data = open_data(small(folder, tmp_path, on_bad_image="skip"))
    samples = data.train._reader._samples  # type: ignore[attr-defined]
    samples[0] = (samples[0][0], -1)
    with pytest.raises(UsageError, match="`data` must have a class for each image, got -1 for .*train/9/0.png"):
        data.train[0]


def test_images_in_a_tar_file_belong_to_their_class_folder_at_any_depth(tmp_path):
    names = [f"./{kind}/{part}/{n}.png" for kind in ("cat", "dog") for part in ("s1", "s2") for n in range(2)]
    for split in ("train", "val"):
        make_shard(tmp_path / f"{split}.tar", {name: png(9) for name in names})
    data = open_data(small(tmp_path, tmp_path))
    assert data.class_names == ("cat", "dog")
    assert sorted(data.train.read(index)[1] for index in range(8)) == [0] * 4 + [1] * 4


@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_a_tar_file_without_its_rest_is_no_whole_one(tmp_path, folder, damage):
    for make in (lambda path: make_shard(path, samples({10: 1, 20: 0})), lambda path: make_tar(folder / "train", path)):
        path = tmp_path / "x-train.tar"
        make(path)
        with tarfile.open(path) as archive:
            header = archive.getmembers()[-1].offset
        content = bytearray(path.read_bytes())
        content[header] ^= 1
        path.write_bytes(content if damage == "flipped" else content[:header])
        with pytest.raises(tarfile.ReadError, match="damaged or cut off"):
            list(members(path))
    with pytest.raises(UsageError, match=r"`data` must be a whole tar file, got .*x-train.tar \(damaged or cut off"):
        open_data(small(path, tmp_path, val_data=str(folder / "val")))


def test_one_tar_file_a_class_in_a_tar_file(tmp_path, folder):
    inner = {}
    for kind in ("cat", "dog"):
        make_shard(tmp_path / f"{kind}.tar", {f"{n}.png": png(n) for n in range(4)})
        inner[f"{kind}.tar"] = (tmp_path / f"{kind}.tar").read_bytes()
    for split in ("train", "val"):
        make_shard(tmp_path / "all" / f"{split}.tar", inner)
    data = open_data(small(tmp_path / "all", tmp_path))
    assert data.class_names == ("cat", "dog")
    assert len(data.train) == 8


def test_a_tar_file_in_a_tar_file_that_lost_its_end_is_told(tmp_path, folder):
    make_shard(tmp_path / "cat.tar", {"0.png": png(0)})
    whole = (tmp_path / "cat.tar").read_bytes()
    make_shard(tmp_path / "all.tar", {"cat.tar": whole[:1024], "dog/1.png": png(1)})
    with pytest.raises(
        UsageError, match=r"`data` must be a whole tar file, got .*all.tar \(cat.tar in it: damaged or cut off"
    ):
        open_data(small(tmp_path / "all.tar", tmp_path, val_data=str(folder / "val")))


def test_tar_files_one_after_another_are_refused(tmp_path, folder):
    make_tar(folder / "train", tmp_path / "cat.tar")
    one = (tmp_path / "cat.tar").read_bytes()
    (tmp_path / "both.tar").write_bytes(one + one)
    with pytest.raises(
        UsageError, match=r"whole tar file, got .*both.tar \(another tar file follows it after \d+ bytes"
    ):
        open_data(small(tmp_path / "both.tar", tmp_path, val_data=str(folder / "val")))
    make_shard(tmp_path / "all.tar", {"cat.tar": one, "dog.tar": one, "bee.tar": one + one})
    with pytest.raises(UsageError, match=r"all.tar \(bee.tar in it: another tar file follows it after"):
        open_data(small(tmp_path / "all.tar", tmp_path, val_data=str(folder / "val")))
    (tmp_path / "both.tar").write_bytes(one + bytes(10_000) + b"a note" * 1000)  # as tar does: no header, not read
    open_data(small(tmp_path / "both.tar", tmp_path, val_data=str(folder / "val")))


def test_a_compressed_tar_file_in_a_tar_file_is_the_one_that_is_named(tmp_path, folder):
    make_shard(tmp_path / "all.tar", {"cat.tar": gzip.compress(b"0" * 1000), "dog/1.png": png(1)})
    with pytest.raises(UsageError, match=r"all.tar \(cat.tar in it: it is compressed: decompress it with gzip"):
        open_data(small(tmp_path / "all.tar", tmp_path, val_data=str(folder / "val")))


def test_links_in_a_tar_file_are_refused_and_what_macos_leaves_is_no_image(tmp_path, folder):
    """A link would be left out, and the images that it stands for with it."""
    image = folder / "train" / "9" / "0.png"
    image.with_name("._0.png").write_bytes(b"AppleDouble")
    make_tar(folder / "train", tmp_path / "train.tar")
    make_tar(folder / "val", tmp_path / "val.tar")
    same_data(open_data(small(folder, tmp_path)), open_data(small(tmp_path, tmp_path)))
    image.with_name("7.png").symlink_to(image)
    make_tar(folder / "train", tmp_path / "train.tar")
    with pytest.raises(UsageError, match=r"9/7.png in it is a link: pack with tar --dereference --hard-dereference"):
        open_data(small(tmp_path, tmp_path))
    image.with_name("7.png").unlink()
    (folder / "train" / "zebra").symlink_to(image.parent)  # a whole class
    make_tar(folder / "train", tmp_path / "train.tar")
    with pytest.raises(UsageError, match="train/zebra in it is a link"):
        open_data(small(tmp_path, tmp_path))
    (folder / "train" / "zebra").unlink()
    image.with_name("8.png").hardlink_to(image)
    make_tar(folder / "train", tmp_path / "train.tar")
    with pytest.raises(UsageError, match="in it is a link"):
        open_data(small(tmp_path, tmp_path))
