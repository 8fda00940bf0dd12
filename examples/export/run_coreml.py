"""Classify a picture with a CoreML package, on macOS: `python run_coreml.py network.mlpackage picture.png`."""

import json
import sys

import coremltools
import numpy as np
from picture import prepare

model = coremltools.models.MLModel(sys.argv[1])
facts = model.user_defined_metadata
name = model.get_spec().description.input[0].name
scores = model.predict({name: prepare(sys.argv[2], json.loads(facts["preprocessing"]))})["output"][0]
print(json.loads(facts["class_names"])[int(np.argmax(scores))])
