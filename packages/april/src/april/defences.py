"""Defences, composed by ``+``: ``parse("clip:1+gaussian:1e-3")``.

A defence acts at up to three places: in the model that is trained (a position embedding that is
fixed), in what the client computes (larger batches, local steps, DP-SGD, a sum over clients that
the server sees alone), and on the upload (`april.transforms`). `Defence.upload` simulates all
three; `Defence.apply` the last one, on gradients that exist already.

The paper's message is that a learnable position embedding is the weak point; withholding its
gradient or fixing it removes the closed forms. A fixed embedding still lets the network, and a
matching attack, know the order of the patches. The rest is field practice.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as nnf
from torch import Generator, Tensor, nn

from april import transforms
from april.client import Loss, gradients, local_sgd
from april.dp import private_gradients
from april.models import sincos_position
from april.spec import ViTSpec
from april.transforms import Transform
from april.updates import from_state_dicts
from effcv.errors import ArgumentError, choose

Place = Literal["model", "client", "upload"]


@dataclass(frozen=True)
class Kind:
    """One sort of defence.

    Attributes:
        place: Where it acts.
        words: What it does; ``{0}``, ``{1}`` stand for its numbers.
        defaults: Of its numbers; their count is the largest that is taken.
        low: Least value of a number, itself allowed.
        high: Largest value.
        whole: Whether numbers are counts.
        transform: On the upload, where it acts there.
    """

    place: Place
    words: str
    defaults: tuple[float, ...] = ()
    low: float = 1e-12
    high: float = math.inf
    whole: bool = False
    transform: Transform | None = None


def _upload(transform: Transform, words: str, *defaults: float, high: float = math.inf) -> Kind:
    return Kind("upload", words, defaults, high=high, transform=transform)


KINDS: Mapping[str, Kind] = {
    "freeze-position": Kind("model", "position embedding frozen, its gradient does not exist"),
    "sincos": Kind("model", "position embedding replaced by a fixed sin-cos one"),
    "batch": Kind("client", "{0:g} pictures a batch", (8,), low=1, high=65536, whole=True),
    "local-steps": Kind("client", "{0:g} local steps, each on pictures of its own", (5,), low=1,
                        high=10_000, whole=True),
    "secure-sum": Kind("client", "the server sees the sum over {0:g} clients alone", (4,), low=1,
                       high=65536, whole=True),
    "dp-sgd": Kind("client", "each picture's gradient clipped at {0:g}, noise of {1:g} times that "
                   "(no epsilon is claimed without accounting)", (1.0, 0.5), low=0.0),
    "drop-position": _upload(transforms.drop_position, "position gradient withheld"),
    "clip": _upload(transforms.clip, "joint norm clipped at {0:g}", 1.0),
    "clip-each": _upload(transforms.clip_each, "norm of each tensor clipped at {0:g}", 0.1),
    "gaussian": _upload(transforms.gaussian, "normal noise of {0:g} RMS", 1e-2),
    "gaussian-abs": _upload(transforms.gaussian_abs, "normal noise of {0:g}", 1e-4),
    "laplace": _upload(transforms.laplace, "Laplace noise of {0:g} RMS", 1e-2),
    "laplace-abs": _upload(transforms.laplace_abs, "Laplace noise of {0:g}", 1e-4),
    "top-k": _upload(transforms.top_k, "largest {0:.3%} of the entries kept", 0.1, high=1.0),
    "mask": _upload(transforms.mask, "random {0:.3%} of the entries kept", 0.5, high=1.0),
    "sign": _upload(transforms.sign, "signs alone"),
    "int8": _upload(transforms.int8, "rounded to 8-bit integers"),
    "fp16": _upload(transforms.fp16, "sent as float16"),
    "bf16": _upload(transforms.bf16, "sent as bfloat16"),
}  # fmt: skip


@dataclass(frozen=True)
class Stage:
    """A defence of one kind with its numbers."""

    name: str
    values: tuple[float, ...] = ()

    @property
    def kind(self) -> Kind:
        """What it is."""
        return KINDS[self.name]


@dataclass(frozen=True)
class Defence:
    """Stages in the order in which they were written.

    Attributes:
        stages: None at all is no defence.
    """

    stages: tuple[Stage, ...] = ()

    @property
    def pictures(self) -> int:
        """Pictures behind one upload: batch size times local steps times clients."""
        each = (self._number(name) for name in ("batch", "local-steps", "secure-sum"))
        return math.prod(int(value) for value in each)

    def describe(self) -> str:
        """Says in words what is done."""
        return "; ".join(s.kind.words.format(*s.values) for s in self.stages) or "no defence"

    def prepare(self, model: nn.Module, spec: ViTSpec) -> nn.Module:
        """Returns the model that is trained under this defence; a copy where it changes."""
        names = {stage.name for stage in self.stages if stage.kind.place == "model"}
        learned = {name for name, p in model.named_parameters() if p.requires_grad}
        if not names or spec.position not in learned:
            return model
        model = copy.deepcopy(model)
        owner = model.get_submodule(spec.position.rpartition(".")[0])
        leaf = spec.position.rpartition(".")[2]
        embedding = getattr(owner, leaf)
        if "sincos" in names:
            fixed = sincos_position(spec.grid, spec.width, spec.position_prefix)
            delattr(owner, leaf)
            owner.register_buffer(leaf, fixed.to(embedding).reshape(embedding.shape))
        else:
            embedding.requires_grad_(False)
        return model

    def apply(
        self,
        gradients: Mapping[str, Tensor],
        *,
        generator: Generator,
        spec: ViTSpec | None = None,
    ) -> dict[str, Tensor]:
        """Applies the stages that act on the upload to gradients that exist already.

        Args:
            gradients: By parameter name; left alone.
            generator: Of all that is drawn.
            spec: Needed by ``drop-position`` alone.

        Raises:
            ArgumentError: Another stage acts before the gradients exist; `upload` simulates it.
        """
        early = [stage.name for stage in self.stages if stage.kind.place != "upload"]
        if early:
            raise ArgumentError(
                f"{early[0]!r} acts before there is an upload, expected one of those that change "
                f"it: {', '.join(name for name, kind in KINDS.items() if kind.place == 'upload')}"
            )
        return self._transform(gradients, spec, generator)

    def upload(
        self,
        model: nn.Module,
        spec: ViTSpec,
        inputs: Tensor,
        labels: Tensor,
        *,
        generator: Generator,
        lr: float = 0.05,
        loss: Loss = nnf.cross_entropy,
    ) -> dict[str, Tensor]:
        """Simulates what the server receives.

        Args:
            model: As `prepare` gave it, or any.
            spec: Its names.
            inputs: Normalised (M, C, H, W), dealt to clients and local steps in equal parts; with
                ``M = pictures`` each part is one batch.
            labels: (M,).
            generator: Of all that is drawn.
            lr: Of local steps.
            loss: Mean over a batch.

        Returns:
            Gradients by name, the mean over clients; after local steps those of the weight delta.
        """
        model = self.prepare(model, spec)
        clients, steps = int(self._number("secure-sum")), int(self._number("local-steps"))
        if len(inputs) < clients * steps:
            raise ArgumentError(
                f"{clients} clients with {steps} local steps need {clients * steps} pictures or "
                f"more, found {len(inputs)}"
            )
        sums: dict[str, Tensor] = {}
        for x, y in zip(inputs.chunk(clients), labels.chunk(clients), strict=True):
            batches = list(zip(x.chunk(steps), y.chunk(steps), strict=True))
            found = self._client(model, batches, lr=lr, loss=loss, generator=generator)
            for name, g in self._transform(found, spec, generator).items():
                sums[name] = sums[name] + g if name in sums else g
        return {name: g / clients for name, g in sums.items()} if clients > 1 else sums

    def _client(
        self,
        model: nn.Module,
        batches: list[tuple[Tensor, Tensor]],
        *,
        lr: float,
        loss: Loss,
        generator: Generator,
    ) -> dict[str, Tensor]:
        """One client's gradients, before anything is done to them."""
        private = next((stage for stage in self.stages if stage.name == "dp-sgd"), None)
        if private is None and len(batches) == 1:
            return gradients(model, *batches[0], loss=loss)
        if private is None:
            before = {name: p.detach().clone() for name, p in model.named_parameters()}
            after = local_sgd(copy.deepcopy(model), batches, lr=lr, loss=loss)
            delta = from_state_dicts(before, after, lr=lr, steps=len(batches)).gradients
            kept = {name for name, p in model.named_parameters() if p.requires_grad}
            return {
                name: (g / len(batches)).to(before[name].dtype)
                for name, g in delta.items() if name in kept
            }  # fmt: skip
        if len(batches) > 1:
            raise ArgumentError("dp-sgd is simulated for one step; expected no local-steps beside")
        max_norm, noise = private.values
        return private_gradients(
            model, *batches[0], max_norm=max_norm, noise=noise, generator=generator, loss=loss
        )

    def _transform(
        self, found: Mapping[str, Tensor], spec: ViTSpec | None, generator: Generator
    ) -> dict[str, Tensor]:
        done = dict(found)
        for stage in self.stages:
            if stage.kind.transform is not None:
                value = stage.values[0] if stage.values else 0.0
                done = stage.kind.transform(done, value, spec, generator)
        return done

    def _number(self, name: str) -> float:
        return next((stage.values[0] for stage in self.stages if stage.name == name), 1)


def parse(text: str) -> Defence:
    """Reads a defence from words: ``none``, or kinds with their numbers joined by ``+``.

    Examples: ``clip:1+gaussian:1e-3``, ``top-k:0.1``, ``dp-sgd:1:0.5+bf16``.

    Raises:
        ArgumentError: Unknown kind (the nearest is suggested), or a number out of its range.
    """
    if text.strip() in ("", "none"):
        return Defence()
    stages = tuple(_stage(part.strip()) for part in text.split("+") if part.strip() != "none")
    names = [stage.name for stage in stages if stage.kind.place != "upload"]
    if len(set(names)) < len(names):
        raise ArgumentError(f"{text!r} names a defence of the model or client twice")
    return Defence(stages)


def _stage(text: str) -> Stage:
    name, *numbers = text.split(":")
    kind = KINDS[choose(name, KINDS, "defence")]
    if len(numbers) > len(kind.defaults):
        raise ArgumentError(f"{name} takes {len(kind.defaults)} numbers, found {text!r}")
    try:
        values = tuple(float(number) for number in numbers) + kind.defaults[len(numbers) :]
    except ValueError:
        raise ArgumentError(f"{text!r} is not {name} with numbers after colons") from None
    for value in values:
        sound = math.isfinite(value) and kind.low <= value <= kind.high
        if not sound or (kind.whole and value != int(value)):
            raise ArgumentError(
                f"{name} takes {'a whole number' if kind.whole else 'a number'} in "
                f"[{kind.low:g}, {kind.high:g}], found {value:g}"
            )
    if name == "dp-sgd" and values[0] <= 0:
        raise ArgumentError(f"dp-sgd clips at a norm above 0, found {values[0]:g}")
    return Stage(name, values)
