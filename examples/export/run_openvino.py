"""Classify a picture with an exported OpenVINO file: `python run_openvino.py network.xml picture.png`."""

import json
import sys

import numpy as np
import openvino
from picture import prepare

model = openvino.Core().read_model(sys.argv[1])
facts = {name: str(value) for name, value in model.get_rt_info("condconv").value.items()}
run = openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})  # else bf16 where the CPU has it
scores = run(prepare(sys.argv[2], json.loads(facts["preprocessing"])))[0][0]
print(json.loads(facts["class_names"])[int(np.argmax(scores))])
