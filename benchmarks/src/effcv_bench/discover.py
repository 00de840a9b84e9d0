"""Finds bench cases: what installed packages announce under the entry point group `GROUP`.

The harness knows no package by name. One whose bench cannot be imported is reported as broken, in
one sentence, and the others are not affected.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import EntryPoint, entry_points

from effcv.bench import Case
from effcv.errors import ArgumentError, BenchError, choose

GROUP = "effcv.bench"


@dataclass(frozen=True)
class Package:
    """An installed package that announces cases.

    Attributes:
        name: The entry point's name.
        version: Version of the distribution that holds it.
        cases: Its cases in the order it lists them.
        broken: Why they could not be loaded, in one line; empty when they were.
    """

    name: str
    version: str
    cases: tuple[Case, ...] = ()
    broken: str = ""


def announced() -> dict[str, EntryPoint]:
    """Returns the announced entry points by name, sorted, without importing anything."""
    return {entry.name: entry for entry in sorted(entry_points(group=GROUP), key=lambda e: e.name)}


def load(name: str) -> Package:
    """Imports the bench of one package.

    Raises:
        ArgumentError: No installed package announces this name.
    """
    entries = announced()
    entry = entries[choose(name, entries, "package")]
    package = Package(name, entry.dist.version if entry.dist else "unknown")
    try:
        return replace(package, cases=_checked(entry.load()()))
    except (Exception, SystemExit) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        return replace(package, broken=f"its bench {entry.value} cannot be loaded: {reason}")


def _checked(cases: object) -> tuple[Case, ...]:
    if not isinstance(cases, Iterable):
        raise BenchError(f"expected a list of cases, found {type(cases).__name__}")
    found = tuple(cases)
    for item in found:
        if not isinstance(item, Case):
            raise BenchError(f"expected cases only, found {type(item).__name__}")
    names = [item.name for item in found]
    if len(set(names)) < len(names):
        raise BenchError(f"two cases have the same name: {', '.join(sorted(names))}")
    return found


def select(selection: Sequence[str], profile: str) -> list[Package]:
    """Loads packages and keeps the cases that are wanted.

    Args:
        selection: ``PACKAGE`` or ``PACKAGE:CASE`` each; nothing means every package.
        profile: Cases without a budget for it are left out.

    Returns:
        The packages by name, with their cases narrowed; broken ones included.

    Raises:
        ArgumentError: A name is unknown, or a case that was named does not run in the profile.
    """
    wanted: dict[str, set[str]] = {}
    for item in selection or list(announced()):
        name, _, case_name = item.partition(":")
        wanted.setdefault(name, set()).add(case_name)
    return [_narrow(load(name), names, profile) for name, names in sorted(wanted.items())]


def _narrow(package: Package, names: set[str], profile: str) -> Package:
    """Keeps the named cases of a package; the empty name stands for all of the profile."""
    if package.broken:
        return package
    by_name = {case.name: case for case in package.cases}
    for name in names - {""}:
        choose(name, by_name, f"case of {package.name}")
        if profile not in by_name[name].budget_s:
            known = ", ".join(by_name[name].budget_s)
            raise ArgumentError(
                f"{package.name}:{name} does not run in the profile {profile!r}, only in: {known}"
            )
    kept = (c for c in package.cases if profile in c.budget_s and (c.name in names or "" in names))
    return replace(package, cases=tuple(kept))
