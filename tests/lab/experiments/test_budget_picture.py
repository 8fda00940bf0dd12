"""The picture of an elastic network's members."""

import pytest
from PIL import Image

from condconv.errors import UsageError
from condconv.lab.experiments import Curve, check_picture, plot_members
from tests.lab.experiments.drawing import drawn

COSTS = [
    Curve("kilobytes", {"bytes": [10.0, 20.0, 40.0]}, {}),
    Curve("time", {"batch 1": [1.0, 1.5, 2.0], "batch 32": [1.0, 1.2, 1.3]}, {"batch 1": [(1, 1), (1.4, 1.7), (2, 2)]}),
]


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_every_member_is_a_point_with_its_number(tmp_path, monkeypatch, suffix):
    path = tmp_path / f"members.{suffix}"
    figure = drawn(monkeypatch, lambda: plot_members(path, (0, 1, 3), (0.5, 0.6, 0.7), COSTS, title="Members"))
    left, right = figure.axes
    assert (left.get_xlabel(), right.get_xlabel()) == ("kilobytes", "time")
    assert left.get_ylabel() == "validation accuracy (%)"
    assert left.lines[0].get_xydata().tolist() == [[10, 50], [20, 60], [40, 70]]
    assert [text.get_text() for text in left.texts] == ["0", "1", "3"]
    assert [text.get_text() for text in right.texts] == ["0", "1", "3", "0", "1", "3"]
    assert left.get_legend() is None
    assert [text.get_text() for text in right.get_legend().get_texts()] == ["batch 1", "batch 32"]
    assert [left.lines[0].get_linestyle(), *(each[0].get_linestyle() for each in right.containers)] == [
        "-",
        "None",
        "-",
    ]
    (bars,) = right.containers[0][2]
    assert [segment[:, 0].tolist() for segment in bars.get_segments()] == [[1, 1], [1.4, 1.7], [2, 2]]
    if suffix == "png":
        with Image.open(path) as image:
            assert image.width > image.height > 300
    else:
        assert "</svg>" in path.read_text()


def test_what_cannot_be_drawn(tmp_path):
    for name in ("members.pdf", "members"):
        with pytest.raises(UsageError, match=r"`plot` must end in .png or .svg, got .*members"):
            check_picture(tmp_path / name)
    for costs in (COSTS[:1], [*COSTS, Curve("x", {"y": [1.0]}, {})]):
        with pytest.raises(UsageError, match="`curves` must hold two costs or more of all members, got"):
            plot_members(tmp_path / "a.svg", (0, 1, 3), (0.5, 0.6, 0.7), costs, title="")
