"""What `alcs analyze` found, as files: report.json for tools, report.html for people.

This module arranges what the page shows; ``templates/report.html.j2`` says how it looks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alcs import pages, roofline
from alcs.roofline import Machine

if TYPE_CHECKING:
    from alcs.engine import SparseEngine
    from alcs.segments import LayerTime


@dataclass(frozen=True)
class Analysis:
    """A network on this machine, layer by layer.

    Attributes:
        title: Name of the network.
        machine: The roofs, measured in the same run.
        layers: In running order; of one image, a median each.
        outputs: Size of what each layer makes, by its name.
        whole_ms: Median of a whole inference of one image, by the caller's clock.
        facts: The model, versions and so on, for a table.
        notes: What the import said, and each part that onnxruntime runs.
    """

    title: str
    machine: Machine
    layers: Sequence[LayerTime]
    outputs: Mapping[str, str]
    whole_ms: float
    facts: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()

    @property
    def sentence(self) -> str:
        """The outcome in one sentence."""
        macs = sum(layer.macs for layer in self.layers)
        seconds = sum(layer.seconds for layer in self.layers)
        rate = 2 * macs / seconds / 1e9
        return (
            f"{self.whole_ms:.3g} ms an image; {macs / 1e6:.4g} million multiply-adds are left, "
            f"done at {rate:.0f} GFLOP/s: {rate / self.machine.peak:.0%} of the peak, all layers."
        )

    def rows(self) -> list[dict[str, Any]]:
        """Returns a row for each layer."""
        total = sum(layer.seconds for layer in self.layers)
        return [
            {
                "layer": layer.name,
                "kind": layer.kind,
                "output": self.outputs.get(layer.name, ""),
                "kernel": layer.kernel,
                "group": layer.group,
                "density": layer.density,
                "microseconds": 1e6 * layer.seconds,
                "share_of_time": layer.seconds / total,
                "gflops": roofline.gflops(layer),
                "flop_a_byte": roofline.intensity(layer),
                "share_of_roofline": self.machine.share(layer),
            }
            for layer in self.layers
        ]

    def to_json(self) -> dict[str, Any]:
        """Returns everything as plain JSON types."""
        return {
            "title": self.title,
            "summary": self.sentence,
            "machine": dataclasses.asdict(self.machine),
            "whole_ms": self.whole_ms,
            "facts": dict(self.facts),
            "notes": list(self.notes),
            "layers": self.rows(),
        }


def analyze(
    engine: SparseEngine, *, facts: Mapping[str, Any], rounds: int = 30, seed: int = 0
) -> Analysis:
    """Measures the roofs, then every layer, then the whole.

    Args:
        engine: With native kernels.
        facts: For the page's last table.
        rounds: Inferences that are measured.
        seed: Of the inputs.

    Raises:
        DataError: The engine has no native kernels.
    """
    from alcs.peers import OURS
    from alcs.plan import OnnxPart
    from alcs.summary import sizes
    from alcs.verify import random_inputs
    from effcv.runtime.timing import compare

    program = engine.program
    machine = roofline.measure(engine.backend, threads=engine.num_threads)
    inputs = random_inputs(program, 1, seed=seed)
    times = compare({OURS: lambda: engine.run(inputs)}, threads=engine.num_threads, rounds=rounds)
    reasons = [
        reason
        for segment in program.segments
        if isinstance(segment, OnnxPart)
        for reason in segment.reasons
    ]
    noisy = [f"The measurement was disturbed: {times.why_noisy}."] if times.noisy else []
    return Analysis(
        program.name,
        machine,
        engine.profile(inputs, rounds=rounds),
        sizes(program),
        times[OURS].median_ms,
        dict(facts),
        [*program.notes, *reasons, *noisy],
    )


def write(analysis: Analysis, folder: str | Path) -> dict[str, str]:
    """Writes report.html and report.json into a folder; see `alcs.pages.write`."""
    return pages.write(folder, render(analysis), analysis.to_json())


def render(analysis: Analysis) -> str:
    """Returns the page as HTML."""
    rows = analysis.rows()
    return pages.render(
        "report.html.j2",
        analysis=analysis,
        rows=rows,
        longest=max((row["share_of_time"] for row in rows), default=1.0),
        roofline=pages.svg(roofline.plot(analysis.machine, analysis.layers)),
    )
