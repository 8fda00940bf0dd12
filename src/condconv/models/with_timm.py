"""Run a script with the networks in timm's registry.

`python -m condconv.models.with_timm train.py --model condconv_mobilenet_v1_cc_050_8e ...`; with several processes,
`torchrun --nproc_per_node 8 -m condconv.models.with_timm train.py ...`. It also does what timm's scripts do not: after
each step of an optimizer, it anneals the temperatures of the softmax routings that the optimizer trains.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any

from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from condconv.models.timm_registry import created, register_timm_models
from condconv.nn import SoftmaxRouting


def anneal_trained(optimizer: Optimizer, args: Any = (), kwargs: Any = None) -> None:
    """Anneal the softmax routings of registered networks whose weights an optimizer has changed."""
    trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    for network in created:
        for module in network.modules():
            if isinstance(module, SoftmaxRouting) and id(module.fc.weight) in trained:
                module.anneal_()


def main() -> None:
    """Register the networks and the annealing, then run the script named first with the arguments after it."""
    arguments = sys.argv[1:]
    if not arguments or not Path(arguments[0]).is_file():
        got = arguments[0] if arguments else "nothing"
        sys.exit(
            f"usage: python -m condconv.models.with_timm SCRIPT.py [ARGUMENTS]: SCRIPT.py must be a file, got {got}"
        )
    register_timm_models()
    register_optimizer_step_post_hook(anneal_trained)
    sys.argv = arguments
    sys.path.insert(0, str(Path(arguments[0]).resolve().parent))  # as Python does for a script
    runpy.run_path(arguments[0], run_name="__main__")


if __name__ == "__main__":
    main()
