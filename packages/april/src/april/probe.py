"""Which closed form a model admits, decided by numbers instead of names.

The algebra rests on two identities that hold for *any* weights, picture and loss where the
architecture is right, and fail where it is not:

    patch form (ours)          G_patch^T X = dl/dE
    closed form (the paper's)  G^T Z = W_q^T dl/dW_q + W_k^T dl/dW_k + W_v^T dl/dW_v

So both are tried on a float64 copy with a random picture and random weights on its outputs, against
autograd. Parameters of the copy that are all zero (a zero-initialised head or LayerScale) are drawn
at random: a gradient of zero would satisfy anything.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from april.adapters import spec_of
from april.client import twice_differentiable
from april.rows import embedding, patch_gradient, position_rows, qkv_rows, token_rows, weight_rows
from april.spec import ViTSpec
from effcv.errors import ArgumentError, DataError
from effcv.runtime.seed import generator

TOLERANCE = 1e-6  # relative; where an identity holds, float64 leaves 1e-12


@dataclass(frozen=True)
class Condition:
    """One rank condition: ``left`` must not exceed ``right``.

    Attributes:
        name: In the paper's symbols: ``"T <= D"``.
        left: Value of its left side.
        right: Value of its right side.
        holds: Whether it does.
        meaning: What it is needed for.
    """

    name: str
    left: int
    right: int
    holds: bool
    meaning: str


@dataclass(frozen=True)
class Eligibility:
    """What a model's architecture admits.

    Attributes:
        spec: Names and geometry, None where none could be found.
        patch_form: Whether our patch form applies.
        april_form: Whether the paper's closed form applies.
        architecture: ``"A"`` where the paper's identity holds, ``"B"`` where only ours does.
        reasons: Why a form does not apply, one sentence each.
        april_error: Relative error of the paper's identity; None where it could not be tried.
        patch_error: The same of ours.
        conditions: Rank conditions, which decide how well an admitted form works.
        capacity: Pictures of a batch whose patches can be told from others: floor(min(D, P) / N).
    """

    spec: ViTSpec | None
    patch_form: bool
    april_form: bool
    architecture: Literal["A", "B"] | None
    reasons: tuple[str, ...]
    april_error: float | None
    patch_error: float | None
    conditions: tuple[Condition, ...]
    capacity: int

    def to_json(self) -> dict[str, Any]:
        """Returns it as plain JSON types."""
        return dataclasses.asdict(self)

    def summary(self) -> str:
        """Returns a few lines for a reader."""
        lines = [
            f"patch form (ours): {'yes' if self.patch_form else 'no'}",
            f"closed form (the paper's): {'yes' if self.april_form else 'no'}",
            *(f"{c.name}: {c.left} and {c.right}, {'holds' if c.holds else 'fails'} ({c.meaning})"
              for c in self.conditions),
            *self.reasons,
        ]  # fmt: skip
        return "\n".join(lines)


def probe_architecture(
    model: nn.Module, spec: ViTSpec | None = None, *, seed: int = 0
) -> Eligibility:
    """Tries both identities on a copy of the model; the model itself is left alone.

    Args:
        model: Any model that maps pictures to a tensor (or to an output that holds one).
        spec: Names and geometry; by default `april.adapters.spec_of` finds them.
        seed: Of the random picture and weighting.
    """
    try:
        spec = spec or spec_of(model)
        trial = _Trial(model, spec, seed=seed)
    except (ArgumentError, DataError) as error:
        return Eligibility(spec, False, False, None, (str(error),), None, None, (), 0)
    patch_error, april_error = trial.patch_error(), None
    reasons = list(trial.obstacles(patch_error))
    try:
        april_error = trial.april_error()
        if april_error > TOLERANCE:
            reasons.append(
                "the paper's closed form does not apply: a norm or a skip connection stands "
                f"between the tokens and the first attention (relative error {april_error:.1e})"
            )
    except (ArgumentError, DataError) as error:
        reasons.append(f"the paper's closed form does not apply: {error}")
    patch_form = patch_error <= TOLERANCE
    # Without the patch identity step 4 has no linear map from patches to tokens to invert.
    april_form = patch_form and april_error is not None and april_error <= TOLERANCE
    return Eligibility(
        spec=spec,
        patch_form=patch_form,
        april_form=april_form,
        architecture="A" if april_form else "B" if patch_form else None,
        reasons=tuple(reasons),
        april_error=april_error,
        patch_error=patch_error,
        conditions=conditions(spec),
        capacity=spec.capacity,
    )


def conditions(spec: ViTSpec) -> tuple[Condition, ...]:
    """Returns the rank conditions of both forms, each on its own."""
    width, rows = spec.width, (spec.patches, spec.tokens, spec.patch_length)
    return tuple(
        Condition(name, left, width, left <= width, meaning)
        for name, left, meaning in (
            ("N <= D", rows[0], "patch form: the patches are determined"),
            ("T <= D", rows[1], "the paper's form: the tokens are determined"),
            ("C p^2 <= D", rows[2], "the paper's form: tokens determine their patches"),
            ("N + 1 <= D", rows[0] + 1, "certificate: a wrong picture leaves a residual"),
        )
    )


class _Trial:
    """One forward and backward pass of a float64 copy, with what goes in and out of E watched."""

    def __init__(self, model: nn.Module, spec: ViTSpec, *, seed: int) -> None:
        self.spec = spec
        copied = copy.deepcopy(model).cpu().double().eval()
        draw = generator(seed, "probe")
        with torch.no_grad():
            for parameter in copied.parameters():
                if not parameter.any():
                    parameter.normal_(std=0.02, generator=draw)
        self.inputs = torch.randn(
            1, spec.channels, *spec.image_size, generator=draw, dtype=torch.float64
        )
        self.weights: Mapping[str, Tensor] = {n: p.detach() for n, p in copied.named_parameters()}
        seen: list[tuple[Tensor, Tensor]] = []
        layer = copied.get_submodule(spec.patch_weight.rpartition(".")[0])
        layer.register_forward_hook(lambda _, args, output: seen.append((args[0], output)))
        named = {n: p for n, p in copied.named_parameters() if p.requires_grad}
        with twice_differentiable():
            output = _output(copied, self.inputs)
        weighting = torch.randn(output.shape, generator=draw, dtype=torch.float64)
        watched = [pair[1] for pair in seen[:1]]
        found = torch.autograd.grad(
            (output * weighting).sum(), [*named.values(), *watched], allow_unused=True
        )
        pairs = zip(named, found[: len(named)], strict=True)
        self.gradients = {n: g for n, g in pairs if g is not None}
        self.fed = seen[0][0].detach() if seen else None
        self.token_gradient = found[-1] if seen else None
        position_rows(self.gradients, spec), patch_gradient(self.gradients, spec)

    def patch_error(self) -> float:
        """Relative error of G_patch^T X = dl/dE."""
        patches = self.spec.to_patches(self.inputs)[0]
        right = patch_gradient(self.gradients, self.spec)
        return _relative(position_rows(self.gradients, self.spec).mT @ patches, right)

    def april_error(self) -> float:
        """Relative error of G^T Z = sum of W^T dl/dW, in what prefix tokens cannot account for.

        The tokens of patches are E x + b + pos. Those of the class token and its like are left
        open, since models make them in ways of their own; the few directions that their gradients
        span, at most as many as they are of D, are taken out of both sides.
        """
        spec = self.spec
        if not spec.qkv:
            raise ArgumentError("the projections of its first attention are unknown (ViTSpec.qkv)")
        projection, bias = embedding(self.weights, spec)
        position = weight_rows(self.weights, spec)[spec.position_prefix :]
        tokens = spec.to_patches(self.inputs)[0] @ projection.mT + bias + position
        weight = qkv_rows(self.weights, spec, what="weight")
        right = weight.mT @ qkv_rows(self.gradients, spec)
        rows = token_rows(self.gradients, spec)
        left = rows[spec.prefix :].mT @ tokens
        prefix = torch.linalg.qr(rows[: spec.prefix].mT).Q
        left, right = (side - prefix @ (prefix.mT @ side) for side in (left, right))
        return _relative(left, right)

    def obstacles(self, patch_error: float) -> list[str]:
        """Says what stands before and after the patch projection, where the identity fails."""
        if patch_error <= TOLERANCE:
            return []
        found = []
        spec, relative = self.spec, f"relative error {patch_error:.1e}"
        if self.fed is not None and self.fed.shape != self.inputs.shape:
            fed = self.fed.reshape(-1, spec.patch_length)
            patches = spec.to_patches(self.inputs)[0]
            if fed.shape != patches.shape or _relative(fed, patches) > TOLERANCE:
                found.append(
                    "the patch form does not apply: a layer such as LayerNorm stands before the "
                    f"patch projection, which is not fed the picture's patches ({relative})"
                )
        if self.token_gradient is not None:
            grid = self.token_gradient
            rows = grid.flatten(2).mT if grid.ndim == 4 and grid.shape[1] == spec.width else grid
            expected = position_rows(self.gradients, spec)
            if _relative(rows.reshape(-1, spec.width), expected) > TOLERANCE:
                found.append(
                    "the patch form does not apply: a layer such as LayerNorm stands between the "
                    "patch projection and the position embedding, so dl/dpos is not the gradient "
                    f"of what the projection puts out ({relative})"
                )
        return found or [f"the patch form does not apply: its identity fails ({relative})"]


def _output(model: nn.Module, inputs: Tensor) -> Tensor:
    found = model(inputs)
    for name in ("logits", "last_hidden_state"):
        found = getattr(found, name, found)
    while isinstance(found, tuple | list):
        found = found[0]
    if not isinstance(found, Tensor):
        raise ArgumentError(f"the model returns a {type(found).__name__}, expected a tensor")
    return found


def _relative(found: Tensor, expected: Tensor) -> float:
    if found.shape != expected.shape:
        return float("inf")
    return float((found - expected).norm() / expected.norm())
