"""What a package hands to the bench: cases, and the recorder that a case writes into.

A package's ``bench.py`` decorates functions with `case` and lists them in ``cases()``; the entry
point group ``effcv.bench`` announces that list. A case is handed a `Run`, measures its arms with
it and states claims; `run_case` turns that into a `Record`, one JSON object. Nothing here imports
torch.

What may be judged depends on the profile: exact claims (counts, parity, formats) always; claims
about time from ``quick`` on, as ratios; claims about accuracy only in ``claims`` and ``full``, and
only on an interval over at least five paired seeds. A claim that is not judged is still shown.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from effcv.errors import BenchError, choose

PROFILES = ("smoke", "quick", "claims", "full")
MIN_SEEDS = 5  # an accuracy claim on fewer paired seeds is shown, not judged

Kind = Literal["exact", "time", "accuracy"]
_JUDGED_IN: dict[str, tuple[str, ...]] = {
    "exact": PROFILES,
    "time": ("quick", "claims", "full"),
    "accuracy": ("claims", "full"),
}


@dataclass(frozen=True)
class Interval:
    """A value with the bounds of its 95 % interval and the number of samples behind it."""

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]"


@dataclass(frozen=True)
class Measure:
    """One number of one arm; ``better`` is ``"higher"``, ``"lower"`` or ``"neither"``."""

    arm: str
    name: str
    value: float
    unit: str
    better: str
    config: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Claim:
    """A statement, the value that decides it, its bound; ``holds`` is None where not judged."""

    text: str
    value: float
    bound: str
    holds: bool | None
    low: float | None = None
    high: float | None = None
    kind: str = "exact"


@dataclass(frozen=True)
class Record:
    """All that one run of one case left behind."""

    package: str
    version: str
    case: str
    profile: str
    seed: int
    seconds: float
    measures: tuple[Measure, ...]
    claims: tuple[Claim, ...]
    figures: tuple[str, ...]
    notes: tuple[str, ...]
    env: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Returns the record as plain JSON types."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Record:
        """Reads what `to_json` wrote.

        Raises:
            BenchError: A field is missing or unknown.
        """
        try:
            values = dict(data)
            values["measures"] = tuple(Measure(**m) for m in values["measures"])
            values["claims"] = tuple(Claim(**c) for c in values["claims"])
            values["figures"] = tuple(values["figures"])
            values["notes"] = tuple(values["notes"])
            return cls(**values)
        except (KeyError, TypeError) as error:
            raise BenchError(f"this is not a bench record: {error}") from None


class Run:
    """The recorder that a case writes into.

    Attributes:
        profile: One of `PROFILES`.
        seed: First seed; arms of one comparison share their seeds.
        budget_s: Seconds that the case should stay within.
        out: Folder for figures; it exists.
    """

    def __init__(self, case: Case, *, profile: str, seed: int, out: Path) -> None:
        self.profile = choose(profile, PROFILES, "profile")
        self.seed = seed
        self.budget_s = case.budget_s[profile]
        self.out = out
        self._label = case.name
        self.measures: list[Measure] = []
        self.claims: list[Claim] = []
        self.figures: list[str] = []
        self.notes: list[str] = []
        self.loads: list[float] = []

    def compare(
        self,
        arms: Mapping[str, Callable[..., object]],
        inputs: Sequence[object] = (),
        **options: Any,
    ) -> Any:
        """Times the arms side by side with `effcv.runtime.timing.compare`; notes load and noise.

        Returns:
            Its ``Comparison``.
        """
        from effcv.runtime import timing

        times = timing.compare(arms, inputs, **options)
        self.loads += [times.load_before, times.load_after]
        if times.noisy:
            self.note(f"noisy timing of {', '.join(arms)}: {times.why_noisy}")
        return times

    def measure(
        self, name: str, *, arm: str, value: float, unit: str, better: str, **config: Any
    ) -> None:
        """Records one number of one arm, for example ``measure("top1", arm="se", ...)``."""
        choose(better, ("higher", "lower", "neither"), "direction")
        self.measures.append(Measure(arm, name, float(value), unit, better, config))

    def claim(
        self,
        text: str,
        value: float | Interval,
        *,
        at_most: float | None = None,
        at_least: float | None = None,
        above: float | None = None,
        equals: float | None = None,
        kind: Kind = "exact",
    ) -> bool | None:
        """States a claim with exactly one bound and returns whether it holds.

        With an interval and a strict bound (``above``) the whole interval must be above it; with
        ``at_most`` and ``at_least`` the value decides and the interval is printed.

        Returns:
            True or False, or None where this profile may not judge it.

        Raises:
            BenchError: Not exactly one bound is given.
        """
        bounds = {"<=": at_most, ">=": at_least, ">": above, "==": equals}
        given = [(sign, bound) for sign, bound in bounds.items() if bound is not None]
        if len(given) != 1:
            raise BenchError(f"the claim {text!r} needs exactly one bound, found {len(given)}")
        sign, bound = given[0]
        interval = value if isinstance(value, Interval) else None
        number = float(interval.value if interval else value)  # type: ignore[arg-type]
        holds: bool | None = {
            "<=": number <= bound,
            ">=": number >= bound,
            ">": (interval.low if interval else number) > bound,
            "==": number == bound,
        }[sign]
        enough = kind != "accuracy" or (interval is not None and interval.n >= MIN_SEEDS)
        if self.profile not in _JUDGED_IN[kind] or not enough:
            holds = None
        low, high = (interval.low, interval.high) if interval else (None, None)
        self.claims.append(Claim(text, number, f"{sign} {bound:.10g}", holds, low, high, kind))
        return holds

    def figure(self, name: str, figure: Any) -> Path:
        """Keeps a figure: a matplotlib figure (as SVG), a uint8 image (H, W, 3), or a file's path.

        Returns:
            The file under `out`, listed in the record.
        """
        if isinstance(figure, str | Path):
            path = Path(figure)
        elif hasattr(figure, "savefig"):
            path = self.out / f"{name}.svg"
            figure.savefig(path, bbox_inches="tight")
        else:
            from effcv.data import images

            path = images.write(self.out / f"{name}.png", figure)
        self.figures.append(str(path))
        return path

    def note(self, text: str) -> None:
        """Keeps a sentence that a reader of the result must know."""
        self.notes.append(text)

    def say(self, text: str) -> None:
        """Tells the person who waits how far the case is (standard error, one line)."""
        print(f"  {self._label}: {text}", file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Case:
    """A bench case: a function of a `Run`, with seconds of budget for each profile it runs in."""

    name: str
    function: Callable[[Run], None]
    budget_s: Mapping[str, float]
    title: str


def case(
    name: str, *, budget_s: Mapping[str, float], title: str = ""
) -> Callable[[Callable[[Run], None]], Case]:
    """Decorates a function as a bench case.

    Args:
        name: Short name, shown as ``package:name``.
        budget_s: Seconds for each profile; a profile that is absent leaves the case out.
        title: One line for the report; by default the first line of the docstring.
    """
    for profile in budget_s:
        choose(profile, PROFILES, "profile")

    def decorate(function: Callable[[Run], None]) -> Case:
        first_line = (function.__doc__ or name).strip().splitlines()[0]
        return Case(name, function, dict(budget_s), title or first_line)

    return decorate


def environment() -> dict[str, Any]:
    """Returns what a reader needs to judge a time: versions, processor, threads, load."""
    torch = sys.modules.get("torch")
    return {
        "python": platform.python_version(),
        "torch": getattr(torch, "__version__", None),
        "cpu": _cpu_name(),
        "cores": usable_cores(),
        "isa": torch.backends.cpu.get_cpu_capability() if torch else None,
        "threads": torch.get_num_threads() if torch else None,
        "platform": platform.platform(terse=True),
    }


def usable_cores() -> int:
    """Returns the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpu_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def run_case(
    bench_case: Case, *, package: str, version: str, profile: str, seed: int, out: Path
) -> Record:
    """Runs one case in this process and returns its record.

    Args:
        bench_case: The case; its ``budget_s`` must name ``profile``.
        package: Name under which the case was announced.
        version: Version of that package.
        profile: One of `PROFILES`.
        seed: First seed.
        out: Folder for figures, made when absent.
    """
    if profile not in bench_case.budget_s:
        raise BenchError(f"{package}:{bench_case.name} does not run in the profile {profile!r}")
    out.mkdir(parents=True, exist_ok=True)
    run = Run(bench_case, profile=profile, seed=seed, out=out)
    start = time.perf_counter()
    bench_case.function(run)
    seconds = time.perf_counter() - start
    env = environment() | {"load": max(run.loads, default=None)}
    return Record(
        package=package,
        version=version,
        case=bench_case.name,
        profile=profile,
        seed=seed,
        seconds=round(seconds, 3),
        measures=tuple(run.measures),
        claims=tuple(run.claims),
        figures=tuple(run.figures),
        notes=tuple(run.notes),
        env=env,
    )
