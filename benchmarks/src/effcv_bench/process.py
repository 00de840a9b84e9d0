"""Runs cases in processes of their own, with a time limit: the parent's side of `worker`.

A worker leads a process group, which is killed as a whole when a case is over its limit and when
the worker ends; it ends itself when its parent vanishes.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

from effcv.bench import Case, Record
from effcv_bench.discover import Package
from effcv_bench.store import Result

_POLL_S = 0.2
_GRACE_S = 5.0  # for a worker that has delivered its last record, to end by itself


def run_cases(
    package: Package,
    cases: Sequence[Case],
    *,
    profile: str,
    seed: int,
    out: Path,
    limit_s: Callable[[Case], float],
    say: Callable[[str], None],
) -> Generator[Result, None, None]:
    """Runs cases of one package in one worker, or in more when a case ends its worker.

    Args:
        package: The package.
        cases: Cases of it, run in this order.
        profile: Profile that every case has.
        seed: First seed.
        out: Folder for figures; each case has a folder of its own in it.
        limit_s: Seconds a case may take, the import of its package included.
        say: Called with each line that the worker prints, from another thread.

    Yields:
        The result of each case as it ends. Closing the generator kills the worker.
    """
    left = list(cases)
    while left:
        job: dict[str, Any] = {"profile": profile, "seed": seed, "out": str(out)}
        job |= {"package": package.name, "cases": [case.name for case in left]}
        with _Worker(job, say) as worker:
            while left and not worker.over:
                case = left.pop(0)
                yield worker.finish(package, case, limit_s(case))


class _Worker(contextlib.AbstractContextManager["_Worker"]):
    """One worker; ``over`` once it can run no further case."""

    def __init__(self, job: dict[str, Any], say: Callable[[str], None]) -> None:
        self.over = False
        self._say = say
        self._last_lines: deque[str] = deque(maxlen=30)
        self._buffer = b""
        self._channel, theirs = socket.socketpair()
        self._channel.settimeout(_POLL_S)
        job = job | {"channel": theirs.fileno()}
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                [sys.executable, "-u", "-P", "-m", "effcv_bench.worker", json.dumps(job)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
                env=os.environ | {"MPLBACKEND": "Agg"},
            )
        self._reader = threading.Thread(target=self._forward_output, daemon=True)
        self._reader.start()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None and not self.over:
            self._exit_code()
        self._kill()
        self._channel.close()

    def finish(self, package: Package, case: Case, limit_s: float) -> Result:
        """Waits until the case that is running ends, one way or another."""
        start = time.monotonic()
        outcome: dict[str, Any] = {}
        try:
            line = self._next_line(start + limit_s)
            self.over = not line
            outcome = json.loads(line) if line else {"error": self._cause_of_death()}
        except TimeoutError:
            self.over = True
            outcome = {"error": f"time limit: stopped after {limit_s:g} s"}
        if "record" in outcome:
            record = Record.from_json(outcome["record"])
            return Result(package.name, case.name, record.version, record.seconds, record)
        return Result(
            package.name,
            case.name,
            package.version,
            round(time.monotonic() - start, 3),
            error=outcome["error"],
            traceback=outcome.get("traceback") or "\n".join(self._last_lines),
        )

    def _next_line(self, deadline: float) -> bytes:
        """Returns the next line of the channel, nothing at its end; TimeoutError when late."""
        ended = False
        while b"\n" not in self._buffer:
            try:
                chunk = self._channel.recv(1 << 16)
            except TimeoutError:
                # A process left behind may hold the channel open: once the worker has ended, what
                # it has sent is all there will be.
                if ended:
                    return b""
                ended = self._process.poll() is not None
                if not ended and time.monotonic() > deadline:
                    raise
                continue
            if not chunk:
                return b""
            self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def _cause_of_death(self) -> str:
        code = self._exit_code()
        if code is None:
            cause = "its process closed the channel"
        elif code < 0:
            cause = f"its process was killed by {signal.Signals(-code).name}"
        else:
            cause = f"its process ended with exit code {code}"
        self._reader.join(timeout=1)
        return cause + (f", after: {self._last_lines[-1]}" if self._last_lines else "")

    def _exit_code(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._process.wait(timeout=_GRACE_S)
        return None

    def _kill(self) -> None:
        """Kills the whole group, which outlives its leader when a case leaves processes behind."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._reader.join(timeout=1)

    def _forward_output(self) -> None:
        assert self._process.stdout is not None  # noqa: S101 - a pipe was asked for
        with self._process.stdout as pipe:
            for raw in pipe:
                self._last_lines.append(raw.decode(errors="replace").rstrip())
                self._say(self._last_lines[-1])
