"""The example of a classifier that answers easy images early."""

import runpy
from pathlib import Path

import numpy as np
import pytest

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "early_exit.py"


@pytest.mark.slow
def test_the_curve_and_the_files(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    rows = runpy.run_path(str(EXAMPLE))["main"](tmp_path / "a.onnx", epochs=10)
    costs = [row[3] for row in rows]
    assert costs == sorted(costs)
    assert rows[0][1] == 1
    assert rows[-1][1] == 0
    assert costs[0] < costs[-1] / 2
    assert rows[-1][2] > 0.8  # chance: 0.1
    assert rows[-1][2] > rows[0][2]  # the whole network knows more
    x = np.zeros((3, 1, 8, 8), np.float32)
    early, maps = onnxruntime.InferenceSession(tmp_path / "a.onnx").run(None, {"x": x})
    (late,) = onnxruntime.InferenceSession(tmp_path / "a-rest.onnx").run(None, {"x": maps})
    assert early.shape == late.shape == (3, 10)
