"""Where feature maps lie: one block of memory; maps that never live together share their place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

VECTOR = 16  # floats of the widest vector: planes begin at multiples of it


@dataclass(frozen=True)
class MapSpec:
    """A feature map in the arena.

    Attributes:
        channels: Planes.
        height: Rows.
        width: Columns.
        gap: Zeros that readers need before plane 0 and behind every plane.
    """

    channels: int
    height: int
    width: int
    gap: int = 0

    @property
    def stride(self) -> int:
        """Floats from one plane to the next; 1 for a vector."""
        pixels = self.height * self.width
        return 1 if pixels == 1 and not self.gap else round_up(pixels + self.gap)

    @property
    def lead(self) -> int:
        """Floats before plane 0."""
        return round_up(self.gap)

    @property
    def floats(self) -> int:
        """Size of the whole block."""
        return self.lead + round_up(self.channels * self.stride)


def round_up(floats: int) -> int:
    """Returns the next multiple of the widest vector."""
    return -(-floats // VECTOR) * VECTOR


def place(
    maps: Mapping[str, MapSpec], alive: Mapping[str, tuple[int, int]]
) -> tuple[dict[str, int], int]:
    """Places every map, the largest first, at the lowest address that is free while it lives.

    Args:
        maps: By name.
        alive: First and last step, inclusive, of each map.

    Returns:
        Offset of plane 0 of each map in floats, and the floats of the arena.
    """
    blocks: dict[str, int] = {}
    for name in sorted(maps, key=lambda name: -maps[name].floats):
        first, last = alive[name]
        taken = sorted(
            (start, start + maps[other].floats)
            for other, start in blocks.items()
            if alive[other][0] <= last and first <= alive[other][1]
        )
        blocks[name] = _lowest(taken, maps[name].floats)
    end = max((start + maps[name].floats for name, start in blocks.items()), default=0)
    return {name: start + maps[name].lead for name, start in blocks.items()}, end


def _lowest(taken: Sequence[tuple[int, int]], floats: int) -> int:
    at = 0
    for start, end in taken:
        if start - at >= floats:
            break
        at = max(at, end)
    return at
