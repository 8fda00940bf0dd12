"""Classify a picture with a LiteRT file: `python run_litert.py network.tflite picture.png facts.json`.

The format has no place for class names and preprocessing: they are in a JSON file of your own, with these two keys.
"""

import json
import sys
from pathlib import Path

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from picture import prepare

run = Interpreter(sys.argv[1])
run.allocate_tensors()
facts = json.loads(Path(sys.argv[3]).read_text(encoding="utf-8"))
run.set_tensor(run.get_input_details()[0]["index"], prepare(sys.argv[2], facts["preprocessing"]))
run.invoke()
scores = run.get_tensor(run.get_output_details()[0]["index"])[0]
print(facts["class_names"][int(np.argmax(scores))])
