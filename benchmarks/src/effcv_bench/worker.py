"""The process that runs cases: ``python -m effcv_bench.worker JOB``, started by `process`.

It sends one JSON line a case on a socket of its own, so that an arm may print what it likes.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from effcv.bench import run_case
from effcv.errors import BenchError
from effcv_bench import discover
from effcv_bench.store import now


def main(argv: Sequence[str]) -> int:
    """Runs the job ``argv[0]`` (package, cases, profile, seed, out, channel as JSON)."""
    job = json.loads(argv[0])
    channel = socket.socket(fileno=job["channel"])
    channel.set_inheritable(False)
    threading.Thread(target=_die_with_parent, args=(channel,), daemon=True).start()
    package = discover.load(job["package"])
    for name in job["cases"]:
        channel.sendall(_outcome(package, name, job).encode() + b"\n")
    return 0


def _die_with_parent(channel: socket.socket) -> None:
    channel.recv(1)  # the parent never sends: this returns when it is gone
    os.killpg(0, signal.SIGKILL)


def _outcome(package: discover.Package, name: str, job: dict[str, Any]) -> str:
    """Runs one case and words how it ended: ``{"record"}`` or ``{"error", "traceback"}``."""
    try:
        if package.broken:
            raise BenchError(package.broken)
        profile, seed = job["profile"], job["seed"]
        load = os.getloadavg()[0]
        bench_case = next(case for case in package.cases if case.name == name)
        record = run_case(
            bench_case,
            package=package.name,
            version=package.version,
            profile=profile,
            seed=seed,
            out=Path(job["out"]) / package.name / name,
        )
        facts = {
            "title": bench_case.title,
            "load": load if record.env.get("load") is None else record.env["load"],
            "date": now(),
            "command": f"effcv-bench run {package.name}:{name} --profile {profile} --seed {seed}",
            "libraries": _libraries(),
        }
        record = replace(record, env=record.env | facts)
        return json.dumps({"record": record.to_json()}, default=_plain)
    except (Exception, SystemExit) as error:
        last = traceback.format_exception_only(error)[-1].strip().partition("\n")[0]
        return json.dumps({"error": last, "traceback": traceback.format_exc()})


def _libraries() -> dict[str, str]:
    """Returns the version of every third-party package that the case has imported."""
    versions = {
        name: vars(module).get("__version__")
        for name, module in sorted(sys.modules.items())
        if "." not in name and name not in sys.stdlib_module_names and not name.startswith("_")
    }
    return {name: version for name, version in versions.items() if isinstance(version, str)}


def _plain(value: Any) -> object:
    """Turns what JSON does not know, numpy scalars and paths above all, into what it does."""
    return value.item() if hasattr(value, "item") else str(value)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
