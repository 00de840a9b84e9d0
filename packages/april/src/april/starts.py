"""Where matching starts, and the space in which it moves.

The tiled start is Wei et al.'s (2004.10397). The closed-form start and the singular basis of the
patch projection are our extensions.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from april.match_config import Init
from april.spec import ViTSpec
from effcv.errors import ArgumentError

_TILE = 4
_FLOOR = 0.1  # of the largest singular value: weaker directions are stretched no further


def start_images(
    init: Init,
    gradients: Mapping[str, Tensor],
    spec: ViTSpec,
    *,
    batch_size: int,
    stream: torch.Generator,
) -> Tensor:
    """Returns normalised pictures (B, C, H, W) to start from.

    Args:
        init: ``"randn"``, ``"patterned"`` (one random 4 x 4 tile a picture, repeated) or
            ``"closed-form"`` (what `april.closed_form.closed_form_patch` recovers).
        gradients: Read by the closed form alone.
        spec: Geometry.
        batch_size: B.
        stream: Of random numbers; the closed form draws none.

    Raises:
        ArgumentError: The closed form is asked to start a batch.
    """
    height, width = spec.image_size
    if init == "closed-form":
        if batch_size != 1:
            raise ArgumentError(
                f"the closed form starts one picture, found a batch of {batch_size}: "
                "use init 'randn' or 'patterned'"
            )
        from april.closed_form import closed_form_patch

        recovered = closed_form_patch(gradients, spec).image  # clamped: in range, if not near
        return spec.normalise(recovered.double())
    if init == "randn":
        shape = (batch_size, spec.channels, height, width)
        return torch.randn(shape, generator=stream, dtype=torch.float64)
    tile = torch.randn(
        (batch_size, spec.channels, _TILE, _TILE), generator=stream, dtype=torch.float64
    )
    rows, columns = -(-height // _TILE), -(-width // _TILE)
    return tile.tile(1, 1, rows, columns)[..., :height, :width].contiguous()


def singular_basis(model: nn.Module, spec: ViTSpec) -> Tensor:
    """Returns a basis (P, P) of patches, float64, in which the projection E is nearly isotropic.

    Row i is the right-singular vector of E for its i-th singular value s_i, stretched by
    s_max / max(s_i, s_max / 10); the null space of E, where P > D, is stretched as the weakest.
    """
    weight = dict(model.named_parameters())[spec.patch_weight].detach().double()
    # (D, C, p, p) or (D, P): flattened as `ViTSpec.to_patches` flattens a patch.
    singular: Tensor
    rows: Tensor
    _, singular, rows = torch.linalg.svd(weight.flatten(1))
    padded = singular.new_zeros(len(rows))
    padded[: len(singular)] = singular
    stretch = singular[0] / padded.clamp(min=_FLOOR * float(singular[0]))
    return rows * stretch[:, None]


class PixelSpace:
    """Maps what is optimised to pictures and back: pixels themselves, or patches in a basis.

    Args:
        spec: Geometry and range of pixels.
        basis: (P, P) whose rows span patches, or None for pixels.
        like: Gives dtype and device.
    """

    def __init__(self, spec: ViTSpec, *, basis: Tensor | None, like: Tensor) -> None:
        self.spec, self.like = spec, like
        self.basis = None if basis is None else basis.to(like)
        self.inverse = None if basis is None else torch.linalg.inv(basis).to(like)
        edge = torch.zeros(1, spec.channels, 1, 1, dtype=like.dtype, device=like.device)
        self.low, self.high = spec.normalise(edge), spec.normalise(edge + 1)

    def to_images(self, unknown: Tensor) -> Tensor:
        """Returns pictures (B, C, H, W)."""
        return unknown if self.basis is None else self.spec.to_images(unknown @ self.basis)

    def from_images(self, images: Tensor) -> Tensor:
        """Returns the unknown of pictures: themselves, or (B, N, P)."""
        return images if self.inverse is None else self.spec.to_patches(images) @ self.inverse

    def boxed(self, unknown: Tensor) -> Tensor:
        """Returns the unknown with pixels clamped to [0, 1] before normalisation."""
        return self.from_images(self.to_images(unknown).clamp(self.low, self.high))
