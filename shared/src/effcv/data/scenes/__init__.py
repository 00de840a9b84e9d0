"""Procedural scenes with exact labels: one renderer, four views (class, boxes, semantic, panoptic).

`textures` paints stuff, `layout` says where stuff and things go, `shapes` and `stamps` make things,
`canvas` pastes them and keeps account of what is seen, `cue` arranges the routing task, and
`dataset` has `Scenes`. It is integer arithmetic, so that a seed gives the same bytes everywhere.
"""

from effcv.data.scenes.canvas import Scene
from effcv.data.scenes.dataset import Scenes

__all__ = ["Scene", "Scenes"]
