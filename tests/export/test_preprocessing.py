import json

import pytest
import torch

from condconv.errors import UsageError
from condconv.export import FORMATS, export
from condconv.export.preprocessing import complete_preprocessing
from tests.export.cases import layer_case

EXAMPLE = torch.zeros(1, 3, 12, 12)
GIVEN = {"size": 12, "mean": [0.5, 0.4, 0.3], "std": (0.25, 0.25, 1)}


def test_what_is_left_out_is_filled_in():
    assert complete_preprocessing(GIVEN, EXAMPLE) == {
        "size": 12,
        "channels": 3,
        "crop": 1.0,
        "interpolation": "bicubic",
        "mean": [0.5, 0.4, 0.3],
        "std": [0.25, 0.25, 1.0],
    }


def test_what_is_given_stays():
    given = {**GIVEN, "channels": 3, "crop": 0.875, "interpolation": "bilinear"}
    assert complete_preprocessing(given, EXAMPLE) == {**given, "std": [0.25, 0.25, 1.0]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"interpolaton": "bicubic"}, "no keys but size, mean, std, channels, crop, interpolation, got 'interpolaton'"),
        ({"size": 9}, "have the example's size, 12, got 9: change one of them"),
        ({"size": "12"}, "have the example's size, 12, got '12'"),
        ({"channels": 1}, "have the example's channels, 3, got 1"),
        ({"mean": [0.5]}, "have a mean of 3 numbers, one per channel, got [0.5]: give a list of them"),
        ({"mean": torch.zeros(3)}, "have a mean of 3 numbers, one per channel, got tensor"),
        ({"mean": [0.5, float("nan"), 0.5]}, "have a mean of 3 numbers"),
        ({"std": [1.0, 0.0, 1.0]}, "have a std of 3 positive numbers, one per channel, got [1.0, 0.0, 1.0]"),
        ({"std": 1.0}, "have a std of 3 positive numbers, one per channel, got 1.0"),
        ({"crop": 0}, "have a crop above 0 and up to 1, got 0"),
        ({"crop": 87.5}, "have a crop above 0 and up to 1, got 87.5"),
        ({"interpolation": "cubic"}, "interpolation of nearest, box, bilinear, hamming, bicubic, lanczos, got 'cubic'"),
    ],
)
def test_wrong_facts_are_refused(change, message):
    with pytest.raises(UsageError) as error:
        complete_preprocessing({**GIVEN, **change}, EXAMPLE)
    assert str(error.value).startswith("`preprocessing` must ")
    assert message in str(error.value)


@pytest.mark.parametrize("key", ["size", "mean", "std"])
def test_missing_facts_are_named(key):
    given = {name: value for name, value in GIVEN.items() if name != key}
    with pytest.raises(UsageError, match=f"`preprocessing` must have size, mean, std, got no '{key}': add it"):
        complete_preprocessing(given, EXAMPLE)


def test_other_things_than_a_dictionary_are_refused():
    with pytest.raises(UsageError, match="must be a dictionary with size, mean, std, got a str: give one"):
        complete_preprocessing("bicubic", EXAMPLE)


def test_only_square_images_have_preprocessing():
    with pytest.raises(UsageError, match=r"must be for square images, got an example \[B, 3, 12, 11\]"):
        complete_preprocessing(GIVEN, torch.zeros(1, 3, 12, 11))


@pytest.mark.parametrize("format", ["torch-export", "onnx", pytest.param("openvino", marks=pytest.mark.slow)])
def test_names_and_preprocessing_travel_in_the_file(tmp_path, format):
    for package in FORMATS[format].PACKAGES:
        pytest.importorskip(package)
    network, _ = layer_case("1x1")
    path, example = tmp_path / f"n{FORMATS[format].SUFFIX}", torch.zeros(1, 6, 9, 9)
    given = {"size": 9, "mean": [0.5] * 6, "std": [0.25] * 6}
    names = ["ä", "b, c"]
    export(network, path, format=format, example_input=example, class_names=names, preprocessing=given, verify=False)
    found = FORMATS[format].inspect(path).metadata
    assert json.loads(found["class_names"]) == names
    assert json.loads(found["preprocessing"]) == complete_preprocessing(given, example)
    assert found["condconv"]
