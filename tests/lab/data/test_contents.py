"""What a directory, a tar file or a shard may contain: everything that somebody may have put there."""

import importlib
import io
import logging
import os
import socket
import struct
import tarfile
import zlib
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from condconv.errors import UsageError
from condconv.files.checkpoint_format import MOST_CLASSES
from condconv.lab.data import open_data
from condconv.lab.data.contents import FORMATS, check_sides, natural_order, open_image, read_part
from condconv.lab.data.folder import FolderReader, TarReader
from condconv.lab.data.images import IGNORED, Images
from condconv.lab.data.shards import ShardReader
from condconv.lab.data.tars import images
from condconv.lab.data.walking import class_folders, images_below
from tests.lab.samples import make_folder, settings

POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(ran) print\n%%EOF\n"


def picture(kind="PNG", size=(6, 5)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (200, 90, 10)).save(file, kind)
    return file.getvalue()


def header_only_png(side: int) -> bytes:
    """A PNG of 40 bytes that says it has `side` x `side` pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I", 13)
        + header
        + struct.pack(">I", zlib.crc32(header))
        + b"\0\0\0\x09IDAT"
    )


@pytest.fixture
def root(tmp_path):
    """A split with two classes of two images each."""
    for name in ("ant", "bee"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in (1, 2):
            (tmp_path / "data" / name / f"{number}.png").write_bytes(picture())
    return tmp_path / "data"


def below(root: Path) -> tuple[list[str], Counter[str]]:
    left_out: Counter[str] = Counter()
    return [str(Path(each).relative_to(root)) for each in images_below(root, left_out)], left_out


LINKS, NOWHERE = "links to folders above or already read", "links that lead nowhere"
ODD = "pipes, sockets or devices"


@pytest.mark.parametrize("target", ["..", ".", "../..", "/", "up"])
def test_a_link_that_leads_above_is_left_out_and_counted(root, target):
    (root / "ant" / "up").symlink_to(target)
    found, left_out = below(root / "ant")
    assert found == ["1.png", "2.png"]
    assert left_out == ({NOWHERE: 1} if target == "up" else {LINKS: 1})


def test_links_in_circles_end(root, tmp_path):
    """Two links that lead to one another's folder double the paths at every step, without end."""
    one, two = tmp_path / "one", tmp_path / "two"
    for folder, other in ((one, two), (two, one)):
        folder.mkdir()
        (folder / "a.png").write_bytes(picture())
        for name in ("x", "y"):
            (folder / name).symlink_to(other)
    (root / "ant" / "more").symlink_to(one)
    (root / "bee" / "all").symlink_to(root.parent)
    found, left_out = below(root / "ant")
    assert found == ["1.png", "2.png", "more/a.png", "more/x/a.png"]
    assert left_out == {LINKS: 3}
    assert below(root / "bee") == (["1.png", "2.png"], {LINKS: 1})


def test_links_to_images_and_folders_elsewhere_are_followed(root, tmp_path):
    (tmp_path / "disk" / "deep").mkdir(parents=True)
    (tmp_path / "disk" / "deep" / "3.png").write_bytes(picture())
    (root / "ant" / "0.png").symlink_to(tmp_path / "disk" / "deep" / "3.png")
    (root / "ant" / "twice").symlink_to(tmp_path / "disk")
    (root / "cat").symlink_to(tmp_path / "disk")
    reader = FolderReader(root)
    assert reader.class_names == ("ant", "bee", "cat")
    names = [str(Path(reader.filename(index)).relative_to(root)) for index in range(len(reader))]
    assert names == [
        "ant/0.png", "ant/1.png", "ant/2.png", "ant/twice/deep/3.png", "bee/1.png", "bee/2.png", "cat/deep/3.png"
    ]  # fmt: skip


def test_what_lies_in_a_folder_is_read_there_and_not_through_a_link(root):
    (root / "ant" / "z").mkdir()
    (root / "ant" / "z" / "3.png").write_bytes(picture())
    (root / "ant" / "a").symlink_to("z")
    assert below(root / "ant") == (["1.png", "2.png", "z/3.png"], {LINKS: 1})


def test_a_class_that_is_a_link_above_is_none(root):
    (root / "all").symlink_to("..")
    (root / "self").symlink_to(".")
    (root / "circle").symlink_to("circle")
    left_out: Counter[str] = Counter()
    assert class_folders(root, left_out) == ("ant", "bee")
    assert left_out == {LINKS: 2, NOWHERE: 1}


def test_pipes_sockets_and_devices_are_not_opened_and_the_count_is_said(root, caplog):
    os.mkfifo(root / "ant" / "3.png")
    (root / "ant" / "null.jpg").symlink_to("/dev/null")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(os.path.relpath(root / "bee" / "s.png"))
        (root / "bee" / "4.jpg").mkdir()
        (root / "bee" / "up").symlink_to("..")
        with caplog.at_level(logging.WARNING):
            reader = FolderReader(root)
    assert len(reader) == 4
    assert caplog.messages == [f"left out in {root}: {LINKS} (1), {ODD} (3)"]


def test_an_image_that_a_link_misses_is_not_passed_over(root):
    (root / "ant" / "3.png").symlink_to("/mnt/elsewhere/3.png")
    images = Images(FolderReader(root), ("ant", "bee"), in_chans=3)
    with pytest.raises(UsageError, match=r"readable images, got .*ant/3\.png \(\[Errno 2\] No such file"):
        images.read(2)


def test_a_directory_that_cannot_be_read_is_named(root, monkeypatch):
    real = os.scandir

    def scandir(folder):  # root may read any
        if Path(folder).name == "closed":
            raise PermissionError(13, "Permission denied")
        return real(folder)

    (root / "bee" / "closed").mkdir()
    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(UsageError, match=r"that can be read, got .*bee/closed \(Permission denied\): change"):
        FolderReader(root)


def test_only_the_documented_kinds_are_opened_whatever_a_file_is_called(root, monkeypatch):
    ran = []
    monkeypatch.setattr("subprocess.check_call", lambda *args, **kwargs: ran.append(args))
    monkeypatch.setattr("subprocess.check_output", lambda *args, **kwargs: ran.append(args))
    (root / "ant" / "3.jpg").write_bytes(POSTSCRIPT)
    for skip in (False, True):
        images = Images(FolderReader(root), ("ant", "bee"), in_chans=3, skip_unreadable=skip)
        if skip:
            assert images.read(2)[1] == IGNORED
        else:
            with pytest.raises(UsageError, match=r"readable images, got .*3\.jpg \(cannot identify image file\)"):
                images.read(2)
    assert ran == []


@pytest.mark.parametrize("kind", [*FORMATS, "MPO"])
def test_an_image_is_what_it_holds_and_not_what_it_is_called(root, kind):
    """Cameras write MPO, which begins with a JPEG."""
    (root / "ant" / "0.jpg").write_bytes(picture(kind, (16, 16)))
    image, target = Images(FolderReader(root), ("ant", "bee"), in_chans=3).read(0)
    assert (image.size, target) == ((16, 16), 0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot identify image file"),
        (picture(size=(40, 40))[:70], "truncated|broken|cannot"),
        (header_only_png(60_000), r"Image size \(3600000000 pixels\) exceeds limit"),
    ],
    ids=["empty", "truncated", "huge"],
)
def test_files_that_hold_no_image_or_far_too_large_a_one_are_one_sentence(root, content, message):
    (root / "ant" / "0.png").write_bytes(content)
    with pytest.raises(UsageError, match=f"`data` must hold readable images, got .*ant/0.png \\(.*({message})"):
        Images(FolderReader(root), ("ant", "bee"), in_chans=3).read(0)


def test_names_reach_messages_and_log_without_what_a_terminal_obeys(root, caplog):
    red = root / "ant" / "\x1b[31mred\x1b]0;title\x07.png"
    red.write_bytes(b"no image")
    os.mkfifo(root / "bee" / "p.png")
    (root / os.fsdecode(b"caf\xe9.d")).mkdir()
    with pytest.raises(UsageError) as caught, caplog.at_level(logging.WARNING):
        FolderReader(root)
    assert r"names in UTF-8, got caf\udce9.d in" in str(caught.value)
    (root / os.fsdecode(b"caf\xe9.d")).rmdir()
    (root / "bee" / os.fsdecode(b"\xff.png")).write_bytes(picture())  # a file may be called so
    images = Images(FolderReader(root), ("ant", "bee"), in_chans=3, skip_unreadable=True)
    assert [images.read(index)[1] for index in range(len(images))].count(IGNORED) == 1
    assert all(each.isprintable() for each in caplog.messages)
    assert r"ant/\x1b[31mred\x1b]0;title\x07.png (cannot" in caplog.messages[-1]


def test_numbers_in_names_sort_by_value_however_they_are_written():
    names = ["a10", "a2", "b²", "A2", "a02", "1²2", "x" + "9" * 5000]
    assert sorted(names, key=natural_order) == ["1²2", "A2", "a02", "a2", "a10", "b²", "x" + "9" * 5000]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": "hfds/"}, "`data` must have a name after hfds/, got 'hfds': cifar10 for one; a folder is ./hfds"),
        (
            {"data": "torch//"},
            "`data` must have a name after torch/, got 'torch': cifar10 for one; a folder is ./torch",
        ),
        (
            {"data": "wds/"},
            "`data` must have a name after wds/, got 'wds': the directory of the shards; a folder is ./wds",
        ),
        ({"data": "torch/image_folder", "data_dir": "x"}, "a directory itself, got torch/image_folder: give x"),
        ({"data": "d" * 9000}, "no longer than the system allows, got 'ddd"),
        ({"data": "wds/" + "d" * 300}, "no longer than the system allows, got 'wds/ddd"),
        ({"data": "pictures\udce9"}, r"`data` must be a non-empty path in UTF-8, no longer"),
        ({"data": "digits", "out": "o" * 5000}, "`out` must be a non-empty path in UTF-8, no longer"),
        ({"data": "digits", "init_from": "w/\udcff"}, r"allows, or None, got 'w/\udcff': give another name"),
    ],
)
def test_a_name_that_cannot_be_is_one_short_sentence(tmp_path, changes, message):
    with pytest.raises(UsageError) as caught:
        open_data(settings(**{"out": tmp_path / "run"} | changes))
    assert message in str(caught.value)
    assert len(str(caught.value)) < 300


# Tar files


def member(name: str, content: bytes = b"", **attributes) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for attribute, value in attributes.items():
        setattr(info, attribute, value)
    return info, content


def make_tar(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for info, content in members:
            archive.addfile(info, io.BytesIO(content))
    return path


def two_classes(prefix="", **replace):
    contents = {"ant/1.png": picture(), "bee/1.png": picture()} | replace
    return [member(prefix + name, content) for name, content in contents.items()]


@pytest.mark.parametrize("prefix", ["/", "//", "../", "../../up/", "./", "a/../", "/a/b/"])
def test_members_are_named_as_if_unpacked_into_a_folder(tmp_path, prefix):
    reader = TarReader(make_tar(tmp_path / "t.tar", *two_classes(prefix)))
    assert reader.class_names == ("ant", "bee")
    assert ".." not in reader.filename(0).removeprefix(str(tmp_path))


def test_a_member_cannot_leave_its_class_nor_be_of_none(tmp_path):
    inner = make_tar(tmp_path / "ant.tar", member("../../bee/1.png", picture())).read_bytes()
    other = make_tar(tmp_path / "bee.tar", member("x/1.png", picture())).read_bytes()
    reader = TarReader(make_tar(tmp_path / "t.tar", member("ant.tar", inner), member("bee.tar", other)))
    assert [reader[index][1] for index in (0, 1)] == [0, 1]
    assert reader.class_names == ("ant", "bee")
    path = make_tar(tmp_path / "t.tar", *two_classes(), member("stray.png", picture()))
    with pytest.raises(
        UsageError, match="each image in a folder named for its class, got stray.png in .* in none: pack"
    ):
        TarReader(path)


def test_a_later_member_of_the_same_name_is_the_one_that_counts(tmp_path, caplog):
    path = make_tar(tmp_path / "t.tar", *two_classes(), member("./ant/1.png", picture(size=(9, 9))))
    with caplog.at_level(logging.WARNING):
        reader = TarReader(path)
    assert len(reader) == 2
    assert Image.open(reader[0][0]).size == (9, 9)
    assert caplog.messages == [f"left out in {path}: files replaced by later ones of the same name (1)"]


@pytest.mark.parametrize(
    ("odd", "message"),
    [
        (member("ant/2.png", type=tarfile.SYMTYPE, linkname="/etc/passwd"), "ant/2.png in it is a link: pack with"),
        (member("x\x1b[2J", type=tarfile.LNKTYPE, linkname="ant/1.png"), r"x\x1b[2J in it is a link"),
        (
            member("ant/2.png", b"1\n0\n4\n" + b"\0" * 510, pax_headers={
                "GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "90000000000"
            }),
            "ant/2.png in it is stored without its zeros: pack without --sparse",
        ),
        (member("ant/2.png", pax_headers={"size": str(30 * 2**30)}), "ant/2.png in it is cut off"),
        (member("ant/2.png", pax_headers={"size": str(10**30)}), "damaged|cut off|unexpected end"),
        (member("ant/2.png", pax_headers={"size": "-512"}), "a size below zero"),
    ],
    ids=["link", "hard link", "sparse", "beyond the end", "absurd", "negative"],
)  # fmt: skip
def test_members_that_are_not_files_as_they_are(tmp_path, odd, message):
    path = make_tar(tmp_path / "t.tar", *two_classes(), odd)
    with pytest.raises(UsageError) as caught:
        TarReader(path)
    assert any(part in str(caught.value) for part in message.split("|")), str(caught.value)
    assert str(caught.value).startswith(f"`data` must be a whole tar file, got {path} (")


@pytest.mark.parametrize("program", ["gzip", "bz2", "lzma"])
def test_a_compressed_tar_file_is_called_so(root, tmp_path, program):
    module = importlib.import_module(program)
    path, plain = tmp_path / "train.tar", tmp_path / "plain.tar"
    with tarfile.open(plain, "w") as file:
        file.add(root, "train")
    path.write_bytes(module.compress(plain.read_bytes()))
    shown = {"bz2": "bzip2", "lzma": "xz"}.get(program, program)
    with pytest.raises(UsageError, match=rf"it is compressed: decompress it with {shown} -dc OLD.tar > NEW.tar"):
        TarReader(path)
    outer = tmp_path / "outer.tar"
    with tarfile.open(outer, "w") as file:
        file.add(path, "BZh9.tar")
    with pytest.raises(UsageError, match="it is compressed: decompress"):
        TarReader(outer)


def test_pipes_and_devices_in_a_tar_file_are_counted(tmp_path, caplog):
    odd = [member("ant/p.png", type=tarfile.FIFOTYPE), member("ant/d.png", type=tarfile.CHRTYPE)]
    with caplog.at_level(logging.WARNING):
        assert len(TarReader(make_tar(tmp_path / "t.tar", *two_classes(), *odd))) == 2
    assert caplog.messages[0].endswith("t.tar: pipes, sockets or devices (2)")


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_header_that_says_it_is_huge_takes_no_memory(tmp_path, kind):
    """`tarfile` reads names and the like at once; here 40 GB of them are said to come."""
    info, _ = member("x", type=kind)
    info.size = 40 * 10**9
    path = tmp_path / "t.tar"
    with path.open("wb") as file:
        file.write(info.tobuf(tarfile.GNU_FORMAT))
        file.truncate(41 * 10**9)  # takes no room on the disk
    with pytest.raises(UsageError, match="a whole tar file, got .* \\(a header of 38147 MiB\\)"):
        TarReader(path)


def test_headers_of_headers_end(tmp_path):
    """`tarfile` reads each in a call of the one before."""
    info, _ = member("x", type=tarfile.XHDTYPE)
    (tmp_path / "t.tar").write_bytes(info.tobuf(tarfile.USTAR_FORMAT) * 5000)
    with pytest.raises(UsageError, match="a whole tar file, got .*damaged after 0 bytes"):
        TarReader(tmp_path / "t.tar")


def test_an_image_of_gigabytes_is_refused_when_it_is_asked_for(tmp_path):
    info, _ = member("ant/2.png")
    info.size = 30 * 2**30
    path = tmp_path / "t.tar"
    with path.open("wb") as file:
        file.write(info.tobuf(tarfile.GNU_FORMAT))
        file.seek(info.size, os.SEEK_CUR)
        for each, content in [member("bee/1.png", picture())]:
            file.write(each.tobuf() + content.ljust(-(-len(content) // 512) * 512, b"\0"))
        file.write(b"\0" * 1024)
    data = Images(TarReader(path), ("ant", "bee"), in_chans=3)
    with pytest.raises(UsageError, match=r"got .*ant/2\.png \(30\.0 GiB, and an image in a tar file may have 1\): rep"):
        data.read(0)
    assert data.read(1)[1] == 1
    with pytest.raises(ValueError, match="may have 1"):
        read_part(path, 0, 2**30 + 1)


def test_names_that_are_not_utf8_in_a_tar_file(tmp_path):
    path = make_tar(tmp_path / "t.tar", *two_classes(), member("caf\udce9/1.png", picture()))
    with pytest.raises(UsageError, match=r"names in UTF-8, got caf\\udce9 in .*t\.tar: rename the folders"):
        TarReader(path)
    assert len([*images(path, Counter())]) == 3


# Shards


@pytest.mark.parametrize(
    "text",
    ["1" * 19, "9" * 5000, "2147483648", "one", "", "1.0", "-0x1", "1_0", "+1"],
    ids=lambda text: text[:12] or "none",
)
def test_a_class_number_has_an_end(tmp_path, text):
    make_tar(tmp_path / "train.tar", member("1.png", picture()), member("1.cls", text.encode()))
    with pytest.raises(
        UsageError, match=r"a class number from 0 to 2147483647 in each .cls, got b'.{0,25}' in .*1.cls: "
    ):
        ShardReader(tmp_path, "train")


def test_a_class_beyond_the_names_is_refused_and_odd_shards_are_left_out(tmp_path, caplog):
    make_tar(tmp_path / "a-train.tar", member("1.png", picture()), member("1.cls", b" 2\n"))
    os.mkfifo(tmp_path / "b-train.tar")
    with caplog.at_level(logging.WARNING):
        assert ShardReader(tmp_path, "train").class_names == ("2",)
    assert caplog.messages == [f"left out in {tmp_path}: {ODD} (1)"]
    (tmp_path / "classes.txt").write_text("ant\nbee\n")
    with pytest.raises(UsageError, match="with 2 lines and classes up to 2: write one name per line"):
        ShardReader(tmp_path, "train")
    (tmp_path / "classes.txt").write_bytes(b"ant\nb\xe9e\n")
    with pytest.raises(UsageError, match="a classes.txt of text in UTF-8, got .*classes.txt .*: save it so"):
        ShardReader(tmp_path, "train")


@pytest.mark.parametrize(
    ("name", "split"), [("trainval.tar", "train"), ("trainval.tar", "val"), ("latest-train.tar", "val")]
)
def test_a_shard_of_both_splits_is_refused(tmp_path, name, split):
    make_tar(tmp_path / name, member("1.png", picture()), member("1.cls", b"1"))
    with pytest.raises(UsageError, match=f"shards whose names are of one split, train or val, got {name}: rename them"):
        ShardReader(tmp_path, split)


def test_two_images_of_one_sample_are_refused_and_a_later_one_of_the_same_name_counts(tmp_path):
    sample = [member("1.png", b"older"), member("1.png", picture()), member("1.cls", b"1")]
    make_tar(tmp_path / "train.tar", *sample)
    reader = ShardReader(tmp_path, "train")
    assert (len(reader), reader[0][0].read()) == (1, picture())
    make_tar(tmp_path / "train.tar", *sample, member("1.jpg", picture()))
    with pytest.raises(UsageError, match=r"one image for each sample, got .png and .jpg for 1 in .*: remove one"):
        ShardReader(tmp_path, "train")


def test_more_classes_than_a_checkpoint_may_have_are_refused_before_the_first_epoch(tmp_path):
    make_tar(tmp_path / "train.tar", member("1.png", picture()), member("1.cls", b"1"))
    make_tar(tmp_path / "val.tar", member("1.png", picture()), member("1.cls", b"1"))
    (tmp_path / "classes.txt").write_text("\n".join(map(str, range(MOST_CLASSES + 1))))
    with pytest.raises(UsageError, match="`data` must have at most 1,000,000 classes, got 1,000,001 in .*: merge some"):
        open_data(settings(tmp_path, data=f"wds/{tmp_path}", batch_size=2))


def test_a_link_as_a_sample_of_a_shard_is_refused(tmp_path):
    odd = member("1.png", type=tarfile.SYMTYPE, linkname="0.png")
    make_tar(tmp_path / "train.tar", odd, member("1.cls", b"1"))
    with pytest.raises(UsageError, match="`data` must be whole tar files, got .*1.png in it is a link: pack with tar"):
        ShardReader(tmp_path, "train")


def test_images_of_the_documented_kinds_only_in_torchvisions_datasets_too(tmp_path):
    from condconv.lab.data.named import _load

    os.mkfifo(tmp_path / "pipe.JPEG")
    with pytest.raises(OSError, match="not a regular file"):
        _load(str(tmp_path / "pipe.JPEG"))
    (tmp_path / "x.JPEG").write_bytes(POSTSCRIPT)
    with pytest.raises(OSError, match="cannot identify"):
        _load(str(tmp_path / "x.JPEG"))
    (tmp_path / "x.JPEG").write_bytes(picture("GIF"))
    assert _load(str(tmp_path / "x.JPEG")).mode == "RGB"
    with open_image(tmp_path / "x.JPEG") as image:
        assert image.format == "GIF"


def test_a_folder_with_odd_things_trains_as_one_without(tmp_path):
    """The order of the images is that of their paths: what is left out moves none of them."""
    plain, odd = make_folder(tmp_path / "plain"), make_folder(tmp_path / "odd")
    os.mkfifo(odd / "train" / "cat" / "00.png")
    (odd / "train" / "cat" / "0").symlink_to("../..")
    ours, theirs = (open_data(settings(tmp_path / "run", data=str(each), batch_size=4)) for each in (odd, plain))
    names = [
        [Path(data.train.filename(index)).relative_to(root) for index in range(len(data.train))]
        for data, root in ((ours, odd), (theirs, plain))
    ]
    assert names[0] == names[1]


@pytest.mark.parametrize(("size", "scaled_to"), [((1, 40_000), 224), ((70_000, 2), 256), ((5, 8_000_000), 10)])
def test_a_line_that_scaling_would_make_gigabytes_of_is_unreadable(size, scaled_to):
    with pytest.raises(
        ValueError, match=f"{size[0]} x {size[1]} pixels, too narrow to be scaled to {scaled_to} pixels"
    ):
        check_sides(size, scaled_to)


@pytest.mark.parametrize(("size", "scaled_to"), [((1, 1000), 256), ((30_000, 20_000), 16_384), ((640, 480), 9000)])
def test_other_sides_are_as_good_as_any(size, scaled_to):
    check_sides(size, scaled_to)


def test_a_line_among_the_images_is_named_or_left_out(root, tmp_path):
    (root / "ant" / "1.png").write_bytes(picture(size=(1, 9000)))
    names = ("ant", "bee")
    with pytest.raises(UsageError, match="readable images, got .*ant/1.png .1 x 9000 pixels, too narrow"):
        Images(FolderReader(root), names, in_chans=3, scaled_to=300).read(0)
    assert Images(FolderReader(root), names, in_chans=3, scaled_to=300, skip_unreadable=True).read(0)[1] == IGNORED
    assert Images(FolderReader(root), names, in_chans=3).read(0)[1] == 0


def shards(root: Path, names: bytes) -> Path:
    root.mkdir(exist_ok=True)
    for split in ("train", "val"):
        members = [each for n in (0, 1) for each in (member(f"{n}.png", picture()), member(f"{n}.cls", b"%d" % n))]
        make_tar(root / f"{split}.tar", *members)
    (root / "classes.txt").write_bytes(names)
    return root


def test_only_line_ends_part_the_names_of_classes(tmp_path):
    text = "\ufeffold\u2028oak\r\nash\x0ctree\n\n".encode()
    assert ShardReader(shards(tmp_path, text), "val").class_names == ("old\u2028oak", "ash\x0ctree")


@pytest.mark.parametrize("names", [b"\nbee\n", b"ant\n" + b"e" * 4097])
def test_classes_that_no_checkpoint_could_name_are_refused_before_training(tmp_path, names):
    root = shards(tmp_path / "shards", names)
    with pytest.raises(UsageError, match="with names of 1 to 4096 characters, got (an empty one|e+…e+) in wds/"):
        open_data(settings(tmp_path, data=f"wds/{root}", batch_size=2))


def test_a_list_of_classes_that_is_no_file_or_has_no_end_is_refused(tmp_path):
    names = shards(tmp_path, b"ant\nbee\n") / "classes.txt"
    with names.open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(UsageError, match="not a regular file of at most 64 MiB"):
        ShardReader(tmp_path, "train")
    for make in (os.mkfifo, lambda path: path.symlink_to("/dev/zero"), lambda path: path.symlink_to("nowhere")):
        names.unlink()
        make(names)
        with pytest.raises(UsageError, match="not a regular file of at most 64 MiB|No such file"):
            ShardReader(tmp_path, "train")


def test_naming_many_images_of_a_tar_reads_its_headers_once(tmp_path, monkeypatch):
    path = tmp_path / "val.tar"
    make_tar(path, *(member(f"{name}/{n}.png", picture()) for name in ("ant", "bee") for n in range(4)))
    reader = TarReader(path)
    read = []

    def counted(*given):
        read.append(given)
        return images(*given)

    monkeypatch.setattr("condconv.lab.data.folder.images", counted)
    assert [reader.filename(index) for index in (7, 0)] == [f"{path}/bee/3.png", f"{path}/ant/0.png"]
    assert len(read) == 1


HIDDEN_PLACES = (".hidden/1.png", ".git/deep/1.png", "ant/.ipynb_checkpoints/1.png", "bee/deep/.cache/deep/1.png")


def test_hidden_folders_are_left_out_of_directories_and_tar_files_alike(root, tmp_path, caplog):
    for name in HIDDEN_PLACES:
        (root / name).parent.mkdir(parents=True)
        (root / name).write_bytes(picture())
    packed = [member(f"./data/{path.relative_to(root)}", path.read_bytes()) for path in sorted(root.rglob("*.png"))]
    make_tar(tmp_path / "val.tar", *packed)
    with caplog.at_level(logging.WARNING):
        readers = FolderReader(root), TarReader(tmp_path / "val.tar")
    for reader in readers:
        assert reader.class_names == ("ant", "bee")
        assert sorted("/".join(reader.filename(index).split("/")[-2:]) for index in range(len(reader))) == [
            "ant/1.png", "ant/2.png", "bee/1.png", "bee/2.png"
        ]  # fmt: skip
    assert [message.partition(": ")[2] for message in caplog.messages] == ["hidden folders (4)"] * 2


def test_names_of_classes_are_the_same_in_both_codings_of_unicode(tmp_path):
    """As of a folder that macOS wrote and a tar file of another system."""
    composed, parted = "caf\u00e9", "cafe\u0301"
    for split, name in (("train", composed), ("val", parted)):
        for each in (name, "bee"):
            (tmp_path / "data" / split / each).mkdir(parents=True)
            (tmp_path / "data" / split / each / "1.png").write_bytes(picture())
    data = open_data(settings(tmp_path / "run", data=str(tmp_path / "data"), batch_size=2))
    assert data.class_names == data.val.class_names == ("bee", composed)
    assert [data.val.read(index)[1] for index in range(2)] == [0, 1]


@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_classes_whose_names_differ_in_their_coding_only_are_refused(tmp_path, kind):
    names = ("caf\u00e9", "cafe\u0301")
    if kind == "tar":
        make_tar(tmp_path / "t.tar", *(member(f"{name}/1.png", picture()) for name in names))
    else:
        for name in names:
            (tmp_path / name).mkdir()
            (tmp_path / name / "1.png").write_bytes(picture())
    with pytest.raises(UsageError, match="`data` must have classes with different names, got caf\u00e9 more than once"):
        FolderReader(tmp_path) if kind == "folder" else TarReader(tmp_path / "t.tar")
