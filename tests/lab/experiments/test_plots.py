import numpy as np
import pytest
from PIL import Image

from condconv.errors import UsageError
from condconv.lab.experiments.plots import plot_learning_curves
from tests.lab.experiments.drawing import drawn


def test_there_are_curves_for_any_number_of_networks(tmp_path, monkeypatch):
    curves = {str(index): [[0.1, 0.2]] for index in range(6)}
    figure = drawn(monkeypatch, lambda: plot_learning_curves(tmp_path / "a.png", curves, curves, title="Six"))
    assert [len(axes.lines) for axes in figure.axes] == [6, 6]


def test_curves_show_the_mean_the_range_and_the_units(tmp_path, monkeypatch):
    accuracy = {"static": [[0.5, 0.7], [0.7, 0.9]], "conditional": [[0.6, 0.9], [0.8, 0.9]]}
    loss = {"static": [[2.0, 1.0], [2.0, 1.0]], "conditional": [[2.0, 0.5], [2.0, 0.5]]}
    path = tmp_path / "curves.png"
    figure = drawn(monkeypatch, lambda: plot_learning_curves(path, accuracy, loss, title="Two networks"))
    left, right = figure.axes
    assert [line.get_label() for line in left.lines] == ["static", "conditional"]
    assert np.asarray(left.lines[0].get_xydata()).tolist() == [[1, 60], [2, 80]]
    assert len(left.collections) == 2
    assert (left.get_xlabel(), left.get_ylabel()) == ("epoch", "validation accuracy (%)")
    assert right.get_ylabel() == "training loss (nats)"
    assert "mean of 2 seeds" in figure.get_suptitle()
    with Image.open(path) as image:
        assert image.size == (1350, 570)


def test_one_seed_has_no_band(tmp_path, monkeypatch):
    curves = {"static": [[0.5, 0.7]]}
    figure = drawn(monkeypatch, lambda: plot_learning_curves(tmp_path / "a.png", curves, curves, title="One"))
    assert len(figure.axes[0].collections) == 0
    assert figure.get_suptitle().endswith("one seed")


@pytest.mark.parametrize("name", ["$$", r"$\frac{1}$", "a$b$c", r"\$5", "$"])
def test_names_with_dollar_signs_are_drawn_as_they_are(tmp_path, monkeypatch, name):
    curves = {name: [[0.5, 0.7]]}
    figure = drawn(monkeypatch, lambda: plot_learning_curves(tmp_path / "b.png", curves, curves, title=name))
    text = figure.axes[0].get_legend().get_texts()[0]
    assert (text.get_text(), text.get_parse_math()) == (name, False)


def test_a_picture_that_cannot_be_written_is_one_sentence(tmp_path):
    with pytest.raises(UsageError, match="`out` must be where files can be written"):
        plot_learning_curves(tmp_path / "no" / "a.png", {"a": [[0.5]]}, {"a": [[0.5]]}, title="x")
