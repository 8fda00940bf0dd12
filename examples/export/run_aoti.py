"""Classify a picture with a compiled package: `python run_aoti.py network.pt2 picture.png`."""

import json
import sys

import torch
from picture import prepare

run = torch._inductor.aoti_load_package(sys.argv[1])
facts = json.loads(run.get_metadata()["condconv"])
image = torch.from_numpy(prepare(sys.argv[2], json.loads(facts["preprocessing"])))
scores = run(image)[0]
print(json.loads(facts["class_names"])[int(scores.argmax())])
