"""Every public function of the room says what is wrong with what it was given, in four parts."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

import condconv
from condconv import export as room
from condconv.errors import ExportError, UsageError
from condconv.export import FORMATS, export, rewrite
from condconv.export.api import _check_file
from condconv.export.formats.request import Inspection, Request
from condconv.export.verification import make_reference, verify

from ..messages import Row, assert_every_function_has_rows, assert_four_parts, each_row

LONG: Any = "x" * 100_000
DEEP: Any = [[[[LONG]]]]
NET = nn.Sequential(condconv.CondConv2d(3, 4, 1, num_experts=2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
IMAGES = torch.randn(2, 3, 6, 6)
FACTS = {"size": 6, "mean": [0.5] * 3, "std": [0.5] * 3}


def exporting(model: Any = NET, path: Any = "no-such-place.pt2", **given: Any) -> Any:
    return export(model, path, **{"format": "torch-export", "example_input": IMAGES, **given})


class Raises(nn.Module):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text

    def forward(self, x: Any) -> Any:
        raise RuntimeError(self.text)


class Returns(nn.Module):
    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: Any) -> Any:
        return self.value


class Branches(nn.Module):
    def forward(self, x: Any) -> Any:
        return x.mean((2, 3)) + (0 if x.sum() > 0 else 1)


class OfOneSize(nn.Module):
    def forward(self, x: Any) -> Any:
        if x.shape[2] != 6:
            raise RuntimeError("only 6\n\x1b[2J")
        return x.mean((2, 3))


MODELS: list[Any] = [
    None, NET.state_dict(), torch.compile(NET), nn.DataParallel(NET), torch.fx.symbolic_trace(nn.ReLU()),
    copy.deepcopy(NET).to("meta"), copy.deepcopy(NET).double(), nn.Conv2d(3, 4, 1, dtype=torch.complex64),
    nn.BatchNorm2d(3, track_running_stats=False), Returns(5), Returns(torch.zeros(1)),
    Returns(torch.full((6, 2), torch.nan)),
]  # fmt: skip
ARGUMENTS: dict[str, list[Any]] = {
    "path": [None, 5, "n.onnx", LONG + ".pt2", "no/n.pt2", "nul\0.pt2", "", "\x1b[2J.onnx"],
    "format": [None, "paper", LONG, ["onnx"], DEEP],
    "example_input": [
        5,
        [1],
        torch.zeros(3),
        torch.zeros(2, 3, 6, 6, dtype=torch.int64),
        torch.zeros(0, 3, 6, 6),
        torch.zeros(2, 5, 6, 6),
    ],
    "dynamic_batch": [None, 1, LONG, DEEP],
    "max_batch": [1, 0, -5, 2.5, True, LONG, -(10**5000)],
    "dynamic_size": [None, "yes", DEEP],
    "opset": [18, 10**5000, "18", DEEP],
    "forms": [["esum"], 5, {"0": "magic"}, {"0": DEEP}, {"0": None}, {5: "esum"}, {LONG: "esum"}, {"0": "unfold2"}],
    "weights": ["int2", None, LONG, DEEP],
    "class_names": ["abcd", 5, {"a", "b"}, ["a"], [1, 2, 3, 4], [DEEP] * 4],
    "preprocessing": [
        5,
        {},
        {"size": 6},
        {**FACTS, LONG: 1},
        {**FACTS, "size": 7},
        {**FACTS, "size": DEEP},
        {**FACTS, "mean": [10**400] * 3},
        {**FACTS, "std": [0, 1, 1]},
        {**FACTS, "std": LONG},
        {**FACTS, "crop": 0},
        {**FACTS, "crop": DEEP},
        {**FACTS, "interpolation": DEEP},
    ],
    "verify": [None, "no", DEEP],
}
FIXED = {"dynamic_batch": False}
ROWS: dict[str, list[Row]] = {
    "export": [
        *(("model", partial(exporting, model)) for model in MODELS),
        *((name, partial(exporting, **{name: value})) for name, values in ARGUMENTS.items() for value in values),
        ("example_input", lambda: exporting(nn.Linear(3, 4), example_input=None)),
        ("example_input", lambda: exporting(Raises(LONG))),
        ("example_input", lambda: exporting(Raises("\x1b[2J\nsecond line"))),
        ("max_batch", lambda: exporting(max_batch=4, **FIXED)),
        ("dynamic_size", lambda: exporting(OfOneSize(), dynamic_size=True)),
        ("dynamic_size", lambda: exporting(nn.Linear(3, 4), example_input=torch.randn(2, 3), dynamic_size=True)),
        ("forms", lambda: exporting(nn.Conv2d(3, 4, 1), forms={"*": "esum"})),
        ("forms", lambda: exporting(forms={"0": "grouped"})),
        ("preprocessing", lambda: exporting(example_input=torch.zeros(2, 3, 6, 7), preprocessing=FACTS)),
        *(
            ("opset", partial(exporting, format=name, path=f"n{writer.SUFFIX}", opset=3))
            for name, writer in FORMATS.items()
        ),
        *(
            ("dynamic_size", partial(exporting, format=name, path=f"n{writer.SUFFIX}", dynamic_size=True, **options))
            for name, writer in FORMATS.items()
            if writer.WHY_ONE_SIZE is not None
            for options in [FIXED if name == "litert" else {"max_batch": 4}]
        ),
        *(
            ("weights", partial(exporting, format=name, path=f"n{FORMATS[name].SUFFIX}", weights="bfloat16", **FIXED))
            for name in ("openvino", "executorch", "litert", "coreml")
        ),
        *(
            ("max_batch", partial(exporting, format=name, path=f"n{FORMATS[name].SUFFIX}"))
            for name in ("executorch", "coreml")
        ),
        ("dynamic_batch", lambda: exporting(format="litert", path="n.tflite")),
    ],
    "rewrite": [
        ("model", lambda: rewrite(5, "onnx", IMAGES)),
        ("format", lambda: rewrite(NET, LONG, IMAGES)),
        ("example_input", lambda: rewrite(NET, "onnx", None)),
        *(("batch", partial(rewrite, NET, "onnx", IMAGES, batch=value)) for value in (0, True, 2.0, DEEP)),
        *(("forms", partial(rewrite, NET, "onnx", IMAGES, forms=value)) for value in ARGUMENTS["forms"]),
    ],
}


REFERENCE = make_reference(NET, IMAGES)
REQUEST = Request(IMAGES, None, None, False, None, "float32", {})
FAILURES: list[Row] = [
    ("model", lambda: exporting(Branches(), "n.pt2")),
    ("model", lambda: verify(lambda x: x[:1], REFERENCE, (1, 2), "it")),
    ("model", lambda: verify(lambda x: x + 1, REFERENCE, (1, 2), "it")),
    ("model", lambda: verify(Raises(LONG), REFERENCE, (1, 2), "it")),
    ("example_input", lambda: _check_file(Inspection((2, 3, 6, 6), None, {}), REQUEST)),
    ("opset", lambda: _check_file(Inspection((None, 3, 6, 6), 18, {}), replace(REQUEST, opset=20))),
]
"""What is written, and is wrong."""


@each_row(ROWS)
def test_messages_have_four_parts(row: Row, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert_four_parts(*row)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("row", FAILURES, ids=[argument for argument, _ in FAILURES])
def test_messages_of_files_have_four_parts(row: Row, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert_four_parts(*row, ExportError)
    assert not [*tmp_path.iterdir()]


def test_every_public_function_has_rows() -> None:
    assert_every_function_has_rows(room, ROWS, {})


@pytest.mark.parametrize("name", ["TMPDIR", "TEMP"])
def test_a_place_that_aotinductor_cannot_unpack_in_is_named(tmp_path, monkeypatch, name):
    for each in ("TMPDIR", "TMP", "TEMP", "TEMPDIR"):
        monkeypatch.delenv(each, raising=False)
    monkeypatch.setenv(name, str(tmp_path / "none"))
    said = rf"`{name}` must be a directory that can be written to, got {tmp_path}/none \(No such file.*\): set this"
    with pytest.raises(UsageError, match=said):
        export(nn.ReLU(), tmp_path / "n.pt2", format="aoti", example_input=torch.zeros(1, 3, 8, 8))


def test_outputs_that_are_too_large_for_fp32_are_refused(tmp_path):
    """In fp64 they are finite: whatever the file computed would have passed."""
    layers = [nn.Conv2d(1, 1, 1, bias=False) for _ in range(2)]
    for each in layers:
        nn.init.constant_(each.weight, 1e30)
    options = {"format": "torch-export", "example_input": torch.zeros(1, 1, 4, 4)}
    with pytest.raises(UsageError, match="`model` must give finite outputs, got inf or nan for noise: check its"):
        export(nn.Sequential(*layers), tmp_path / "n.pt2", **options)
    assert not [*tmp_path.iterdir()]
