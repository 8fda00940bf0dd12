"""Convolutions whose experts cost about one kernel, in plain torch: the layers and networks of `experts_pilot.py`.

A layer has one kernel `W0` and a routed part that is linear in centred routing weights, `W(x) = W0 + Σ c_e(x) D_e` with
`c = σ(a) - 1/2`. The forms differ in what the `D_e` are made of, and so in their parameters:

- `deltas`: free kernels, one per expert.
- `mix`, `mixcore`, `mixdiag`: `W0 M_e`, input channels mixed by `M_e`; free, `Q S_e P` or `Q diag(s_e) P` of rank R.
- `taps`: `W0 T_e`, the taps mixed by one matrix for all channels.
- `outcore`, `outdiag`: `U S_e V` or `U diag(s_e) V` of rank R, next to `W0`.
- `gains`: a factor `1 + Σ c_e g_e` per input and output channel. It combines with the others: `mixcore+gains`.
- `se`: ordinary squeeze-and-excitation on the inputs; its hidden layer has `rank` units.

Routers see pooled inputs standardised by running statistics and start at zero, so every network starts as the static
one. A form that does not apply to a layer is left out there: mixing in depthwise layers, taps in pointwise ones.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

OPTIONS: dict[str, float] = {
    "experts": 8,
    "rank": 8,
    "spread": 0.3,  # of the D_e at the start, as a share of the kernel's
    "rate": 1,  # of learning, for the routed parts
    "decay": 1,  # of the routed parts, as a share of the kernels'
    "router": 1,  # of learning, for the routers
    "root": 0,  # 1: divide the router's input by sqrt(channels / 16)
    "width": 1,
}
FORMS = ("deltas", "mix", "mixcore", "mixdiag", "taps", "outcore", "outdiag", "gains", "se")
CLASSES = 10


class Router(nn.Module):
    """Centred routing weights `[B, E]` of pooled, standardised inputs.

    Training uses the running statistics too: images stay independent, and a batch may be one image.
    """

    def __init__(self, channels: int, experts: int, scale: float, constant: bool) -> None:
        super().__init__()
        self.linear = nn.utils.skip_init(nn.Linear, channels, experts)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        self.scale, self.constant = scale, constant
        self.probe = ""  # "mean" or "shuffled": what the images of a batch get instead of their own weights
        self.last: Tensor | None = None
        self.mean: Tensor
        self.square: Tensor
        self.batches: Tensor
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("square", torch.ones(channels))
        self.register_buffer("batches", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """Return the weights for a batch `[B, C, H, W]`."""
        pooled = x.mean((2, 3))
        if self.training:
            self.batches += 1
            share = max(0.1, 1 / float(self.batches))
            self.mean.lerp_(pooled.detach().mean(0), share)
            self.square.lerp_(pooled.detach().square().mean(0), share)
        deviation = (self.square - self.mean.square()).clamp(min=0).add(1e-5).sqrt()
        inputs = (pooled - self.mean) / deviation * self.scale
        weights = self.linear(inputs * 0 if self.constant else inputs).sigmoid() - 0.5
        if self.probe == "mean":
            weights = weights.mean(0, keepdim=True).expand_as(weights)
        elif self.probe == "shuffled":
            weights = weights.roll(1, 0)
        self.last = weights.detach()
        return weights


class Conv(nn.Module):
    """A convolution without bias, with the routed parts named in `form`; without any it is the static one."""

    def __init__(
        self,
        shape: tuple[int, int, int],
        stride: int,
        depthwise: bool,
        form: tuple[str, ...],
        options: dict[str, float],
        constant: bool,
        kernels: Generator,
        parts: Generator,
    ) -> None:
        super().__init__()
        self.outputs, self.inputs, self.side = shape
        self.stride, self.depthwise = stride, depthwise
        self.fan_in = (1 if depthwise else self.inputs) * self.side**2
        weight = torch.empty(self.outputs, self.fan_in // self.side**2, self.side**2)
        self.weight = nn.Parameter(weight.uniform_(-1, 1, generator=kernels) * self.fan_in**-0.5)
        left_out = {"mix", "mixcore", "mixdiag"} if depthwise else {"taps"} if self.side == 1 else set()
        self.form = tuple(each for each in form if each not in left_out)
        self.parts = nn.ParameterDict()
        self.experts, self.rank = int(options["experts"]), int(options["rank"])
        for name, (size, spread) in self._sizes(options["spread"]).items():
            self.parts[name] = nn.Parameter(torch.randn(size, generator=parts) * spread)
        if "se" in self.form:
            hidden = self.rank
            self.squeeze, self.excite = nn.Linear(self.inputs, hidden), nn.Linear(hidden, self.inputs)
            for values in (self.squeeze.weight, self.squeeze.bias):
                values.data.uniform_(-(self.inputs**-0.5), self.inputs**-0.5, generator=parts)
            nn.init.zeros_(self.excite.weight)
            nn.init.zeros_(self.excite.bias)
        elif self.form:
            scale = (self.inputs / 16) ** -0.5 if options["root"] else 1.0
            self.router = Router(self.inputs, self.experts, scale, constant)
        self.pixels = (0, 0)

    def _sizes(self, spread: float) -> dict[str, tuple[tuple[int, ...], float]]:
        """Return the shape and the deviation of each part, by name: every D_e starts with `spread` of the kernel's."""
        e, outputs, fan_in = self.experts, self.outputs, self.fan_in
        c, taps = self.inputs, self.side**2
        deviation = (3 * fan_in) ** -0.5
        into, r = min(self.rank, c), min(self.rank, outputs, fan_in)
        between = math.sqrt(outputs * fan_in)
        sizes: dict[str, dict[str, tuple[tuple[int, ...], float]]] = {
            "deltas": {"deltas": ((e, outputs, fan_in // taps, taps), spread * deviation)},
            "mix": {"mix": ((e, c, c), spread * c**-0.5)},
            "mixcore": {"core": ((e, into, into), spread * c**0.5 / into)},
            "mixdiag": {"core": ((e, into), spread * (c / into) ** 0.5)},
            "taps": {"taps": ((e, taps, taps), spread * taps**-0.5)},
            "outcore": {"core": ((e, r, r), spread * deviation * between / r)},
            "outdiag": {"core": ((e, r), spread * deviation * between / r**0.5)},
            "gains": {"out": ((e, outputs), spread)},
            "se": {},
        }
        if not self.depthwise:  # where both gains are one
            sizes["gains"]["in"] = ((e, c), spread)
        for name in ("mixcore", "mixdiag"):
            sizes[name] |= {"left": ((c, into), c**-0.5), "right": ((into, c), c**-0.5)}
        for name in ("outcore", "outdiag"):
            sizes[name] |= {"left": ((outputs, r), outputs**-0.5), "right": ((r, fan_in), fan_in**-0.5)}
        return {name: size for each in self.form for name, size in sizes[each].items()}

    def deltas(self) -> Tensor | None:
        """Return the `D_e`, `[E, O, C/g, taps]`; `None` if the kernel has no routed part."""
        parts, kernel = self.parts, self.weight
        if "deltas" in parts:
            return parts["deltas"]
        if "taps" in parts:
            return torch.einsum("oct,ets->eocs", kernel, parts["taps"])
        if "mix" in parts:
            return torch.einsum("oct,ecd->eodt", kernel, parts["mix"])
        if "core" not in parts:
            return None
        core = parts["core"] if parts["core"].dim() == 3 else torch.diag_embed(parts["core"])
        products = parts["left"] @ core @ parts["right"]
        if {"outcore", "outdiag"} & set(self.form):
            return products.view(-1, *kernel.shape)
        return torch.einsum("oct,ecd->eodt", kernel, products)

    def kernels(self, weights: Tensor, gains: bool = True) -> Tensor:
        """Return the kernel of each image, `[B, O, C/g, taps]`, with its gains or without."""
        deltas = self.deltas()
        kernel: Tensor = self.weight
        if deltas is not None:
            kernel = kernel + (weights @ deltas.flatten(1)).view(-1, *self.weight.shape)
        if gains and "out" in self.parts:
            kernel = kernel * (1 + weights @ self.parts["out"])[:, :, None, None]
        if gains and "in" in self.parts:
            kernel = kernel * (1 + weights @ self.parts["in"])[:, None, :, None]
        return kernel

    def forward(self, x: Tensor) -> Tensor:
        """Convolve a batch `[B, C, H, W]`."""
        self.pixels = (x[0, 0].numel(), math.prod((side - 1) // self.stride + 1 for side in x.shape[2:]))
        if "se" in self.form:
            gate = 2 * self.excite(F.relu(self.squeeze(x.mean((2, 3))))).sigmoid()
            return self._shared(x * gate[:, :, None, None])
        if not self.form:
            return self._shared(x)
        weights = self.router(x)
        if "in" in self.parts:
            x = x * (1 + weights @ self.parts["in"])[:, :, None, None]
        kernels = self.kernels(weights, gains=False)
        y = self._shared(x) if kernels.dim() == 3 else self._per_example(x, kernels)
        return y * (1 + weights @ self.parts["out"])[:, :, None, None] if "out" in self.parts else y

    def _shared(self, x: Tensor) -> Tensor:
        kernel = self.weight.unflatten(-1, (self.side, self.side))
        return F.conv2d(x, kernel, None, self.stride, self.side // 2, 1, self.inputs if self.depthwise else 1)

    def _per_example(self, x: Tensor, kernels: Tensor) -> Tensor:
        """Convolve each image with its own kernel, in the fastest way for few channels on a CPU."""
        batch, _, *sides = x.shape
        sides = [(side - 1) // self.stride + 1 for side in sides]
        if self.depthwise:
            images, groups = x.reshape(1, -1, *x.shape[2:]), batch * self.inputs
            flat = kernels.reshape(groups, 1, self.side, self.side)
            y = F.conv2d(images, flat, None, self.stride, self.side // 2, 1, groups)
        else:
            fields = x if self.side == 1 else F.unfold(x, self.side, padding=self.side // 2, stride=self.stride)
            y = torch.bmm(kernels.flatten(2), fields.flatten(2) if self.side == 1 else fields)
        return y.view(batch, self.outputs, *sides)

    def madds(self) -> int:
        """Count the multiply-adds of one image by the cheaper of two ways: in the maps or in the kernel.

        Pooling, norms and nonlinearities are not counted. The last forward pass gives the number of pixels.
        """
        before, after = self.pixels
        e, o, c, taps, fan_in = self.experts, self.outputs, self.inputs, self.side**2, self.fan_in
        total = o * fan_in * after
        if "se" in self.form:
            return total + 2 * self.rank * c + c * before
        if not self.form:
            return total
        total += c * e + e * sum(self.parts[name].shape[1] for name in ("in", "out") if name in self.parts)
        total += c * before * ("in" in self.parts) + o * after * ("out" in self.parts)
        into, r = min(self.rank, c), min(self.rank, o, fan_in)
        for form in self.form:
            core = r if form.startswith("out") else into
            square = core**2 if form.endswith("core") else core
            if form == "deltas":
                total += e * o * fan_in
            elif form == "mix":
                total += e * c**2 + min(c**2 * before, o * c**2 * taps)
            elif form == "taps":
                total += e * taps**2 + o * fan_in * taps
            elif form in ("mixcore", "mixdiag"):
                total += e * square + min((2 * core * c + square) * before, square * c + o * taps * core * c)
            elif form in ("outcore", "outdiag"):
                in_maps = (core * (o + fan_in) + square) * after
                in_kernel = square * fan_in + o * core * fan_in
                total += e * square + (in_kernel if self.depthwise else min(in_maps, in_kernel))
        return total


def parse(arm: str) -> tuple[str, str, tuple[str, ...], bool, dict[str, float]]:
    """Return the net, the place, the forms, whether routing is constant, and the options of an arm.

    Raises:
        ValueError: The name does not describe an arm.
    """
    name, _, after = arm.partition("@")
    given = dict(option.split("=") for option in after.split(",")) if after else {}
    net, _, rest = name.partition("-")
    place, _, form = rest.partition("-")
    forms = tuple(form.removesuffix("-const").split("+")) if form else ()
    known = net in ("d", "s") and (rest == "static" or place in ("pw", "dw", "all")) and set(forms) <= set(FORMS)
    if not known or not set(given) <= set(OPTIONS) or (rest != "static" and not forms):
        raise ValueError(f"`arm` must be a net, a place and forms, got {arm!r}: see the top of this file")
    return net, place, forms, form.endswith("-const"), OPTIONS | {key: float(value) for key, value in given.items()}


def build(arm: str, seed: int) -> nn.Sequential:
    """Make the network of an arm. The kernels of one seed are the same in all arms of one width."""
    net, place, form, constant, options = parse(arm)
    kernels, parts = Generator().manual_seed(seed), Generator().manual_seed(seed + 10_000)
    layers: list[nn.Module] = []

    def add(shape: tuple[int, int, int], stride: int = 1, depthwise: bool = False, where: str = "") -> None:
        here = form if where and place in (where, "all") else ()
        conv = Conv(shape, stride, depthwise, here, options, constant, kernels, parts)
        layers.extend((conv, nn.BatchNorm2d(shape[0]), nn.ReLU()))

    before = 3
    if net == "d":
        for channels, stride in ((8, 1), (16, 2), (32, 2), (32, 1)):
            outputs = round(channels * options["width"])
            add((outputs, before, 3), stride, where="all")
            before = outputs
    else:
        outputs = round(16 * options["width"])
        add((outputs, before, 3), stride=2)
        before = outputs
        for channels, stride in ((32, 1), (32, 1), (64, 2), (64, 1)):
            outputs = round(channels * options["width"])
            add((before, before, 3), stride, depthwise=True, where="dw")
            add((outputs, before, 1), where="pw")
            before = outputs
    classifier = nn.utils.skip_init(nn.Linear, before, CLASSES)
    for values in (classifier.weight, classifier.bias):
        values.data.uniform_(-(before**-0.5), before**-0.5, generator=kernels)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), classifier)


def convs(model: nn.Module) -> list[Conv]:
    """Return the convolutions of a network."""
    return [layer for layer in model.modules() if isinstance(layer, Conv)]


def count(model: nn.Sequential, size: int) -> tuple[int, int]:
    """Return parameters and multiply-adds per image."""
    model.eval()
    with torch.no_grad():
        model(torch.zeros(1, 3, size, size))
    params = sum(values.numel() for values in model.parameters())
    classifier = sum(layer.weight.numel() for layer in model if isinstance(layer, nn.Linear))
    return params, sum(conv.madds() for conv in convs(model)) + classifier
