"""Classify a picture with an ExecuTorch program: `python run_executorch.py network.pte picture.png`."""

import json
import sys

import torch
from executorch.runtime import Runtime
from picture import prepare

program = Runtime.get().load_program(sys.argv[1])
facts = json.loads(program.load_method("condconv").execute([])[0])["metadata"]
image = torch.from_numpy(prepare(sys.argv[2], json.loads(facts["preprocessing"])))
scores = program.load_method("forward").execute([image])[0][0]
print(json.loads(facts["class_names"])[int(scores.argmax())])
