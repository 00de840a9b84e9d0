"""Cases that behave well, and cases that do what a case must be able to do without harm."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from effcv.bench import Interval, case

ALL = {"smoke": 5, "quick": 5, "claims": 5}
HERE = Path(os.environ.get("FAKE_STATE", "."))  # where cases leave traces for the tests


def _trace(name):
    with (HERE / "trace").open("a") as file:
        file.write(f"{name} {os.getpid()}\n")


@case("good", budget_s=ALL, title="A case that does everything")
def good(run):
    _trace("good")
    run.say("half way")
    for arm, accuracy, time_ms in (("ours", 0.93, 1.2), ("theirs", 0.91, 1.5)):
        run.measure("top1", arm=arm, value=accuracy, unit="", better="higher")
        run.measure("time", arm=arm, value=time_ms, unit="ms", better="lower", batch=8)
    run.claim("parameters as printed", 1536, equals=1536)
    run.claim("not slower than theirs", Interval(1.2, 1.1, 1.3, 30), at_most=1.0, kind="time")
    run.claim("better than none", Interval(0.03, 0.01, 0.05, 5), above=0, kind="accuracy")
    run.note("half of it was measured")


@case("second", budget_s=ALL)
def second(run):
    """Runs after another one."""
    _trace("second")
    run.claim("two is two", 2, equals=2)


@case("figure", budget_s={"quick": 5})
def figure(run):
    """Draws."""
    path = run.out / "curve.svg"
    path.write_text("<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 9 9'/>")
    run.figure("curve", path)


@case("loud", budget_s={"quick": 5})
def loud(run):
    """Prints what looks like a record, on every channel that a library may use."""
    print('{"record": {}}')
    os.write(1, b'{"record": {}}\n')
    os.write(2, b"\xff\xfe not text\n")
    subprocess.run([sys.executable, "-c", "print('from a child')"], check=True)
    import numpy as np

    run.measure("size", arm="a", value=1, unit="", better="lower", batch=np.int64(8))
    run.claim("one", 1, equals=1)


@case("raises", budget_s=ALL)
def raises(run):
    """Fails."""
    raise RuntimeError("shapes (1, 64) and [see arms] differ\nsecond line")


@case("exits", budget_s={"quick": 5})
def exits(run):
    """Leaves."""
    os._exit(7)


@case("killed", budget_s=ALL)
def killed(run):
    """Dies as by the kernel's hand."""
    run.say("loading the kernel")
    os.kill(os.getpid(), signal.SIGKILL)


@case("hangs", budget_s={"quick": 0.1})
def hangs(run):
    """Never ends, and neither does its child."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    (HERE / "pids").write_text(f"{os.getpid()} {child.pid}")
    time.sleep(600)


@case("forks", budget_s={"quick": 5})
def forks(run):
    """Dies and leaves a process behind that holds everything open."""
    if os.fork() == 0:
        time.sleep(600)
    os._exit(1)


@case("large", budget_s={"quick": 5})
def large(run):
    """Has more to say than a small disk takes."""
    run.note("x" * 400_000)


def well():
    return [good, second, figure, loud]


def ill():
    return [good, raises, exits, killed, second]


def stuck():
    return [good, hangs, forks, second]


def big():
    return [good, large, second]
