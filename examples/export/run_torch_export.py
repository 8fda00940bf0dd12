"""Classify a picture with an exported torch program: `python run_torch_export.py network.pt2 picture.png`."""

import json
import sys

import torch
from picture import prepare

extra = {"condconv.json": ""}
program = torch.export.load(sys.argv[1], extra_files=extra)
facts = json.loads(extra["condconv.json"])
image = torch.from_numpy(prepare(sys.argv[2], json.loads(facts["preprocessing"])))
scores = program.module()(image)[0]
print(json.loads(facts["class_names"])[int(scores.argmax())])
