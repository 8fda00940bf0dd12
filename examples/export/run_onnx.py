"""Classify a picture with an exported ONNX file: `python run_onnx.py network.onnx picture.png`."""

import json
import sys

import numpy as np
import onnxruntime
from picture import prepare

session = onnxruntime.InferenceSession(sys.argv[1])
facts = session.get_modelmeta().custom_metadata_map
scores = session.run(None, {"image": prepare(sys.argv[2], json.loads(facts["preprocessing"]))})[0][0]
print(json.loads(facts["class_names"])[int(np.argmax(scores))])
