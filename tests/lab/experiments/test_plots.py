import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from condconv.errors import UsageError
from condconv.lab.experiments.plots import plot_learning_curves, plot_routing


def drawn(monkeypatch, draw) -> Figure:
    """Runs a drawing function and returns the figure it saved."""
    saved = []
    original = Figure.savefig

    def save(self, path, **options):
        saved.append(self)
        return original(self, path, **options)

    monkeypatch.setattr(Figure, "savefig", save)
    draw()
    return saved[0]


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


def test_the_routing_picture_names_classes_experts_and_values(tmp_path, monkeypatch):
    weights = torch.tensor([[0.1, 0.9], [0.5, float("nan")], [1.0, 0.0]])
    path = tmp_path / "routing.png"
    figure = drawn(monkeypatch, lambda: plot_routing(path, weights, ("cat", "dog", "fox"), title="Layer"))
    axes, bar = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["cat", "dog", "fox"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "2"]
    assert [text.get_text() for text in axes.texts] == ["0.10", "0.90", "0.50", "nan", "1.00", "0.00"]
    assert bar.get_ylabel() == "mean routing weight"
    assert path.stat().st_size > 0


@pytest.mark.parametrize("name", ["$$", r"$\frac{1}$", "a$b$c", r"\$5", "$"])
def test_names_with_dollar_signs_are_drawn_as_they_are(tmp_path, monkeypatch, name):
    figure = drawn(monkeypatch, lambda: plot_routing(tmp_path / "a.png", torch.rand(2, 3), [name, "b"], title=name))
    texts = [figure.axes[0].get_yticklabels()[0], figure.axes[0].title]
    assert [(text.get_text(), text.get_parse_math()) for text in texts] == [(name, False)] * 2
    curves = {name: [[0.5, 0.7]]}
    plot_learning_curves(tmp_path / "b.png", curves, curves, title=name)
    assert (tmp_path / "b.png").stat().st_size > 0


def test_many_classes_are_cut_and_the_title_says_so(tmp_path, monkeypatch):
    names = [str(index) for index in range(50)]
    figure = drawn(monkeypatch, lambda: plot_routing(tmp_path / "a.png", torch.rand(50, 4), names, title="Layer"))
    assert figure.axes[0].get_title() == "Layer (first 40 of 50 classes)"
    assert len(figure.axes[0].get_yticklabels()) == 40


def test_a_picture_that_cannot_be_written_is_one_sentence(tmp_path):
    with pytest.raises(UsageError, match="`out` must be where files can be written"):
        plot_routing(tmp_path / "no" / "routing.png", torch.rand(2, 3), ["a", "b"], title="x")
