import numpy as np
import pytest
import torch
from PIL import Image

from condconv.errors import UsageError
from condconv.lab.experiments.routing_picture import Grouping, plot_routing
from tests.lab.experiments.drawing import drawn

WEIGHTS = {
    "first": torch.tensor([[0.1, 0.9], [0.5, float("nan")], [1.0, 0.0]]),
    "second": torch.tensor([[0.2, 0.2], [0.3, 0.3], [0.4, 0.4]]),
}


def test_groups_are_rows_layers_are_columns_and_weights_are_written(tmp_path, monkeypatch):
    shades = [np.full((4, 4), value, dtype=np.uint8) for value in (0, 100, 255)]
    groupings = [
        Grouping("animal", ("cat", "dog", "fox"), WEIGHTS, shades),
        Grouping("light", ("day", "night"), {layer: weights[:2] for layer, weights in WEIGHTS.items()}),
    ]
    path = tmp_path / "routing.png"
    figure = drawn(monkeypatch, lambda: plot_routing(path, groupings, title="Weights"))
    animals, first, second, lights, *_, bar = figure.axes
    assert [label.get_text() for label in animals.get_yticklabels()] == ["cat", "dog", "fox"]
    assert [inset.images[0].get_array().max() for inset in animals.child_axes] == [0, 100, 255]
    assert lights.child_axes == []
    assert (animals.get_ylabel(), lights.get_ylabel()) == ("animal", "light")
    assert [axes.get_title() for axes in (first, second)] == ["first", "second"]
    assert [text.get_text() for text in first.texts] == ["0.1", "0.9", "0.5", "nan", "1.0", "0.0"]
    assert [label.get_text() for label in first.get_xticklabels()] == ["1", "2"]
    assert bar.get_ylabel() == "mean routing weight"
    with Image.open(path) as image:
        assert min(image.size) > 300


def test_one_grouping_is_enough(tmp_path):
    plot_routing(tmp_path / "a.png", [Grouping("class", ("a", "b"), {"x": torch.rand(2, 3)})], title="x")
    assert (tmp_path / "a.png").stat().st_size > 0


@pytest.mark.parametrize("name", ["$$", r"$\frac{1}$", "$"])
def test_names_with_dollar_signs_are_drawn_as_they_are(tmp_path, monkeypatch, name):
    grouping = Grouping(name, (name, "b"), {name: torch.rand(2, 3)})
    figure = drawn(monkeypatch, lambda: plot_routing(tmp_path / "a.png", [grouping], title=name))
    labels, heat, *_ = figure.axes
    for text in (labels.get_yticklabels()[0], labels.yaxis.label, heat.title):
        assert (text.get_text(), text.get_parse_math()) == (name, False)


def test_a_picture_that_cannot_be_written_is_one_sentence(tmp_path):
    grouping = Grouping("class", ("a", "b"), {"x": torch.rand(2, 3)})
    with pytest.raises(UsageError, match="`out` must be where files can be written"):
        plot_routing(tmp_path / "no" / "routing.png", [grouping], title="x")
