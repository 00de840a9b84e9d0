"""Block reconstruction (BRECQ, 2102.05426; Genie's additions): rounding and steps, block by block.

All roundings of a residual block, the step sizes of its activations and its biases are learned
together, so that the block's output is that of the float network when its input is that of the
quantised one. What a layer spoils another may then mend, which layer by layer cannot be had; it is
what four-bit activations need. Slower than `adaround`: gradients come from running the block.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from effcv.errors import ArgumentError
from effcv.runtime.seed import generator
from zeroq_gen.network import Network
from zeroq_gen.quant.adaround import AdaRoundConfig, pull, soft, soft_slope, start
from zeroq_gen.quant.blocks import Block, Walk, blocks
from zeroq_gen.quant.lsq import StepSizes, mixed
from zeroq_gen.quant.simulate import constants
from zeroq_gen.quant.state import Layer, QuantState

_CACHED = 32  # pictures a batch, when a part of the network is run


@dataclass(frozen=True)
class ReconstructConfig:
    """How blocks are reconstructed.

    Attributes:
        iterations: Steps a block.
        batch: Pictures a step.
        lr: Of Adam for the rounding.
        lr_steps: Of Adam for the logarithm of step sizes.
        lr_bias: Of Adam for biases, relative to the mean magnitude of the layer's biases.
        strength: lambda of the rounding; 0 leaves the rounding as it is and learns only the rest.
        drop: QDrop's probability.
        warmup: Share of the steps before lambda counts.
    """

    iterations: int = 500
    batch: int = 32
    lr: float = 0.01
    lr_steps: float = 0.003
    lr_bias: float = 0.003
    strength: float = 0.1
    drop: float = 0.5
    warmup: float = 0.2

    def __post_init__(self) -> None:
        if self.iterations < 1 or self.batch < 1:
            raise ArgumentError(
                f"iterations {self.iterations} and batch {self.batch}, expected 1 or more"
            )
        if not 0 <= self.drop < 1 or not 0 <= self.warmup < 1 or self.strength < 0:
            raise ArgumentError(
                f"drop {self.drop} and warmup {self.warmup} must be in [0, 1), strength "
                f"{self.strength} not negative"
            )


def reconstruct(
    state: QuantState,
    images: Tensor,
    *,
    config: ReconstructConfig | None = None,
    reference: Network | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> QuantState:
    """Returns the state with learned integers, step sizes and biases.

    Args:
        state: Calibrated; integers that another method found are where rounding starts.
        images: (N, C, H, W) in model-input space.
        config: See there.
        reference: The float network; by default that of the state's graph, which has to be given
            where the state's biases were corrected before.
        seed: Of the batches and of QDrop.
        progress: Called with the number of blocks done and the number of all.
    """
    config = config or ReconstructConfig()
    network, batches = reference or Network(state.graph), list(torch.split(images, _CACHED))
    parts = [block for block in blocks(state.graph) if block.nodes]
    exact, place = Walk(network, batches), 0
    # The image is rounded as calibrated; every other tensor belongs to the block that makes it.
    head = StepSizes(state, ())
    feeds = [head.edit()(state.graph.input, x) for x in batches]
    rounded = torch.cat(feeds)
    for count, block in enumerate(parts):
        given = torch.cat(exact[block.input])
        place += len(block.nodes)
        exact.to(place)
        data = _Data(rounded, given, torch.cat(exact[block.output]))
        random = generator(seed, "reconstruct", count)
        state = _Learner(network, state, block, config).fit(data, random)
        rounded = _run(network, state, block, rounded)
        if progress is not None:
            progress(count + 1, len(parts))
    return state


@dataclass(frozen=True)
class _Data:
    """Of one block: input in the quantised and in the float network, output in the float one."""

    rounded: Tensor
    exact: Tensor
    target: Tensor


@torch.no_grad()
def _run(network: Network, state: QuantState, block: Block, inputs: Tensor) -> Tensor:
    """Runs a block of the quantised network on all pictures."""
    shown, edit = constants(state), StepSizes(state, ()).edit()
    names = [block.output]
    found = [
        network.run({block.input: part}, names, edit=_inside(edit, network), constants=shown)
        for part in torch.split(inputs, _CACHED)
    ]
    return torch.cat([values[block.output] for values in found])


def _inside(edit: Callable[[str, Tensor], Tensor], network: Network) -> Callable[..., Tensor]:
    """Leaves the image alone, which was rounded when it became the first block's input."""
    return lambda name, x: x if name == network.graph.input else edit(name, x)


class _Learner:
    """What is learned of one block."""

    def __init__(
        self, network: Network, state: QuantState, block: Block, config: ReconstructConfig
    ) -> None:
        self._network, self._state, self._block, self._config = network, state, block, config
        self.steps = StepSizes(state, (name for node in block.nodes for name in node.outputs))
        weights = {layer.weight for layer in state.layers}
        self._layers = [layer for layer in block.layers if layer.weight in weights]
        self.rounding = [_Rounding(state, layer) for layer in self._layers]
        self._fixed = constants(state)
        self._biased = [layer.bias for layer in self._layers if layer.bias]
        self.shifts = nn.ParameterList(torch.zeros_like(state.weight(b)) for b in self._biased)
        self._sizes = [float(state.weight(b).abs().mean()) + 1e-6 for b in self._biased]

    def fit(self, data: _Data, random: torch.Generator) -> QuantState:
        """Learns, and returns the state with the result; as it was, if that is no better."""
        config = self._config
        before = self._error(data, self._state)
        if not self._layers or before == 0:
            return self._state
        groups = [
            {"params": self.steps.parameters(), "lr": config.lr_steps},
            {"params": self.shifts.parameters(), "lr": config.lr_bias},
        ]
        if config.strength:
            groups.append({"params": [part.v for part in self.rounding], "lr": config.lr})
        adam = torch.optim.Adam(groups)
        schedule = AdaRoundConfig(strength=config.strength or 1.0, warmup=config.warmup)
        unit = sum(part.v.numel() for part in self.rounding) / before
        for step in range(config.iterations):
            chosen = torch.randint(len(data.target), (config.batch,), generator=random)
            inputs = mixed(data.rounded[chosen], data.exact[chosen], config.drop, random)
            output = self._forward(inputs, random)
            adam.zero_grad()
            loss = unit * nn.functional.mse_loss(output, data.target[chosen])
            loss.backward()  # type: ignore[no-untyped-call]
            if config.strength:
                for part in self.rounding:
                    part.attract(step / config.iterations, schedule)
            adam.step()
        found = self._result()
        return found if self._error(data, found) < before else self._state

    def _forward(self, x: Tensor, random: torch.Generator) -> Tensor:
        shown = dict(self._fixed)
        for layer, part in zip(self._layers, self.rounding, strict=True):
            if self._config.strength:
                shown[layer.weight] = part()
        for name, shift, size in zip(self._biased, self.shifts, self._sizes, strict=True):
            shown[name] = self._state.weight(name) + size * shift
        edit = _inside(self.steps.edit(drop=self._config.drop, random=random), self._network)
        names = [self._block.output]
        found = self._network.run({self._block.input: x}, names, edit=edit, constants=shown)
        return found[self._block.output]

    def _error(self, data: _Data, state: QuantState) -> float:
        output = _run(self._network, state, self._block, data.rounded)
        return float((output - data.target).square().mean())

    @torch.no_grad()
    def _result(self) -> QuantState:
        state = self._state
        integers, changed = dict(state.integers), dict(state.graph.constants)
        if self._config.strength:
            for layer, part in zip(self._layers, self.rounding, strict=True):
                integers[layer.weight] = part.integers()
        for name, shift, size in zip(self._biased, self.shifts, self._sizes, strict=True):
            changed[name] = (state.weight(name) + size * shift).numpy()
        return state.with_(
            graph=state.graph.with_(constants=changed),
            activations={**state.activations, **self.steps.learned()},
            integers=integers,
        )


class _Rounding:
    """The learned rounding of one layer's weights."""

    def __init__(self, state: QuantState, layer: Layer) -> None:
        weight, self._params = state.weight(layer.weight), state.weights[layer.weight]
        self._scale = self._params.like(weight)[0]
        levels = weight / self._scale
        self._floor = torch.floor(levels)
        if layer.weight in state.integers:  # start where another method has ended
            known = state.integers[layer.weight]
            self._floor = torch.minimum(torch.maximum(self._floor, known - 1.0), known.float())
            # Its choice, with room to change: a quarter from the other.
            levels = self._floor + torch.where(known > self._floor, 0.75, 0.25)
        self.v = nn.Parameter(start(levels - self._floor))

    def __call__(self) -> Tensor:
        """Returns the weights, between two integers' worth where that is not decided."""
        levels = self._floor + soft(self.v)
        return levels.clamp(self._params.qmin, self._params.qmax) * self._scale

    def attract(self, time: float, config: AdaRoundConfig) -> None:
        """Adds the regulariser's gradient."""
        if self.v.grad is not None:
            self.v.grad -= pull(soft(self.v).detach(), time, config) * soft_slope(self.v.detach())

    def integers(self) -> Tensor:
        """Returns the integers chosen."""
        whole = self._floor + (soft(self.v) >= 0.5)
        return whole.clamp(self._params.qmin, self._params.qmax).to(torch.int32)
