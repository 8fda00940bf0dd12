"""Full int8 with ONNX Runtime's own tool: `python quantize_static.py network.onnx small.onnx pictures/`.

Calibrates on the pictures of a folder. Do the same to the static network, or you cannot tell what experts lose.
"""

import json
import sys
from pathlib import Path

import onnx
from onnxruntime.quantization import CalibrationDataReader, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from picture import prepare


class Pictures(CalibrationDataReader):
    """The pictures of a folder, one at a time."""

    def __init__(self, folder: str, facts: dict) -> None:
        self.images = iter({"image": prepare(str(path), facts)} for path in sorted(Path(folder).iterdir()))

    def get_next(self) -> dict | None:
        """Return the next one."""
        return next(self.images, None)


source, target, folder = sys.argv[1:]
model = onnx.load(source)
facts = {each.key: each.value for each in model.metadata_props}
routers = [node.name for node in model.graph.node if any("routing_fn" in name for name in node.input)]
quant_pre_process(source, target, skip_symbolic_shape=True)
pictures = Pictures(folder, json.loads(facts["preprocessing"]))
# A scale for each channel: folded norms give the channels of a weight sizes of their own, and with one scale for all of
# them the small ones are lost. Weights of 7 bits: with 8, x86 CPUs without VNNI (those with AVX2 alone) cut off sums of
# two products, and a network that was right on your machine is wrong on theirs.
quantize_static(target, target, pictures, nodes_to_exclude=routers, per_channel=True, reduce_range=True)
