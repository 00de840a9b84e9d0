"""Cuts a draft into segments: as few as can be, so that data changes hands as seldom as can be.

Steps run as soon as their inputs are there, those of the engine first, then those of onnxruntime,
in turn. A segment of the engine without a single convolution would cost more in copies than it
saves: it joins the onnxruntime parts around it.
"""

from __future__ import annotations

from collections.abc import Sequence

from alcs.draft import Draft, Foreign, Step, inputs_of, outputs_of
from alcs.plan import Layer, Network, OnnxPart

_WORTH = ("conv", "depthwise", "linear")

Segment = tuple[Step, ...]  # all layers, or all foreign


def partition(
    draft: Draft, inputs: Sequence[str], outputs: Sequence[str]
) -> list[Network | OnnxPart]:
    """Returns the segments in running order.

    Args:
        draft: Its steps may be in any order that can run.
        inputs: Values that a caller gives.
        outputs: Values that a caller gets.
    """
    steps = list(draft.steps.values())
    segments = _shortest(steps, inputs)
    while len(segments) > 1:
        tiny = {
            id(step)
            for segment in segments
            if not any(isinstance(s, Foreign) or s.kind in _WORTH for s in segment)
            for step in segment
        }
        if not tiny:
            break
        steps = [_handed_over(step) if id(step) in tiny else step for step in steps]
        segments = _shortest(steps, inputs)
    return [_built(draft, segment, segments[place + 1 :], outputs)
            for place, segment in enumerate(segments)]  # fmt: skip


def _handed_over(step: Step) -> Foreign:
    if isinstance(step, Foreign):
        return step
    reason = f"{step.kind} {step.name!r}: the engine could, but it stands alone between parts"
    return Foreign(inputs_of(step), (step.output,), reason)


def _shortest(steps: Sequence[Step], inputs: Sequence[str]) -> list[Segment]:
    """Returns the better of the two schedules that start with one kind or the other."""
    return min((_schedule(steps, inputs, kind) for kind in (Layer, Foreign)), key=len)


def _schedule(steps: Sequence[Step], inputs: Sequence[str], kind: type) -> list[Segment]:
    """Runs in turn everything of one kind that is ready, then everything of the other."""
    known, waiting = set(inputs), list(steps)
    segments: list[Segment] = []
    while waiting:
        ran: list[Step] = []
        later: list[Step] = []
        for step in waiting:
            if isinstance(step, kind) and known.issuperset(inputs_of(step)):
                known.update(outputs_of(step))
                ran.append(step)
            else:
                later.append(step)
        if ran:
            segments.append(tuple(ran))
        waiting, kind = later, Foreign if kind is Layer else Layer
    return segments


def _built(
    draft: Draft, segment: Segment, later: Sequence[Segment], outputs: Sequence[str]
) -> Network | OnnxPart:
    made = [name for step in segment for name in outputs_of(step)]
    read = list(dict.fromkeys(name for step in segment for name in inputs_of(step)))
    wanted = set(outputs).union(
        name for other in later for step in other for name in inputs_of(step)
    )
    given = tuple(name for name in read if name not in made)
    left = tuple(name for name in made if name in wanted)
    layers = tuple(step for step in segment if isinstance(step, Layer))
    if not layers:
        reasons = tuple(step.reason for step in segment if isinstance(step, Foreign))
        model = draft.graph.extracted(given, left).SerializeToString()
        return OnnxPart(model, given, left, reasons)
    keys = {key for layer in layers for key in (layer.weight, layer.bias) if key}
    return Network(
        layers,
        {name: draft.values[name] for name in (*given, *made)},
        {key: draft.weights[key] for key in draft.weights if key in keys},
        given,
        left,
    )
