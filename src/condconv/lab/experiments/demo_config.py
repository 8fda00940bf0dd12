"""Settings of the demo."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from condconv.lab.config import TrainConfig
from condconv.lab.rules import whole

STATIC, CONTROL, ROUTED = "static network", "same experts, one mixture", "CondConv"
"""What the demo calls its networks."""

DATA = "digits-conditions"
_EXPERTS: Mapping[str, Any] = {"experts": "deltas", "init": "same_output"}


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Settings of the demo. The defaults take one to two minutes on a CPU core.

    All were chosen with seeds from 100 on; the demo's own start at 0. Of rates by factors of two, 0.4 to 3.2 leave the
    static network within a point of its best, and at each of them routing gains 1.5 to 2.3 points.

    Attributes:
        out: Directory for the runs, the table and the pictures; finished runs that are there are kept.
        seeds: Number of seeds; each trains the three networks, which start as the same function and see the same
            images in the same order.
        first_seed: The first of them.
        epochs: Epochs of each run.
        width: Width of the network in percent, three digits. Much wider ones read nearly all of these digits.
        num_experts: Experts of each convolution.
        batch_size: Images per update.
        lr: Peak learning rate of SGD, for all networks.
        threads: CPU threads. Networks this small gain nothing from a second one, and become a hundred times slower if
            another program uses a core, since threads wait for one another at every layer.

    Raises:
        UsageError: The number of seeds, epochs or threads is below 1 or too large.
    """

    out: str = "runs/demo"
    seeds: int = 4
    first_seed: int = 0
    epochs: int = 8
    width: str = "038"
    num_experts: int = 4
    batch_size: int = 64
    lr: float = 0.8
    threads: int = 1

    def __post_init__(self) -> None:
        for name in ("seeds", "epochs", "threads"):
            whole(1, 4096 if name == "threads" else 1_000_000).check(name, getattr(self, name))
        whole(0).check("first_seed", self.first_seed)

    @property
    def all_seeds(self) -> range:
        """The seeds."""
        return range(self.first_seed, self.first_seed + self.seeds)

    @property
    def networks(self) -> Mapping[str, tuple[str, Mapping[str, Any]]]:
        """Model and options of each network, by what the demo calls it."""
        conditional = f"small_dense_cc_{self.width}_{self.num_experts}e"
        # Their first weights are those at which the mixture is the static network's kernel.
        constant = {"routing": "constant(learn=True, weights=0.5)"}
        return {
            STATIC: (f"small_dense_{self.width}", {}),
            CONTROL: (conditional, {**_EXPERTS, **constant}),
            ROUTED: (conditional, {**_EXPERTS, "routing": "sigmoid(standardize=True)"}),
        }

    def run(self, network: str, seed: int) -> TrainConfig:
        """Return the settings of one run; networks differ in their experts and routing only."""
        model, options = self.networks[network]
        directory = {STATIC: "static", CONTROL: "control", ROUTED: "condconv"}[network]
        return TrainConfig(
            data=DATA,
            model=model,
            out=str(Path(self.out) / f"{directory}-seed{seed}"),
            model_options=options,
            epochs=self.epochs,
            batch_size=self.batch_size,
            optimizer="sgd",
            lr=self.lr,
            warmup_epochs=min(1, self.epochs - 1),
            seed=seed,
        )
