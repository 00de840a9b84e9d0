"""Every kernel of every instruction set, held against plain loops by ``alcs-check``.

The program (native/check.cpp) compares in double precision, with a tolerance that grows with the
sum of |w x|, poisons with NaN what a kernel must not look at and finds writes outside a plane.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

NATIVE = Path(__file__).parents[1] / "native"
KERNELS = {"conv_k1", "conv_k2", "depthwise", "pool", "element", "linear", "stage"}
ARM_COMPILER, ARM_EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
ARM_FLAGS = (
    f"-DCMAKE_CXX_COMPILER={ARM_COMPILER}",
    "-DCMAKE_SYSTEM_NAME=Linux",
    "-DCMAKE_SYSTEM_PROCESSOR=aarch64",
    "-DCMAKE_EXE_LINKER_FLAGS=-static",
)

needs_compiler = pytest.mark.skipif(
    not (shutil.which("cmake") and shutil.which("c++")), reason="needs cmake and a C++ compiler"
)


def build(folder: Path, *flags: str, source: Path = NATIVE) -> Path:
    """Configures and compiles alcs-check; fails with the compiler's words."""
    configure = ["cmake", "-S", source, "-B", folder, "-DALCS_MODULE=OFF", "-DALCS_CHECK=ON"]
    for command in ([*configure, *flags], ["cmake", "--build", folder, "--parallel", "2"]):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder / "alcs-check"


def verdicts(*command: str | Path) -> dict[str, dict[str, int]]:
    """Returns the faults of each kernel by instruction set, as the program printed them."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found: dict[str, dict[str, int]] = {}
    for line in done.stdout.splitlines():
        if match := re.match(r"(\w+) +(\w+) +\d+ shapes, .* (\d+) faults$", line):
            found.setdefault(match[1], {})[match[2]] = int(match[3])
    assert (done.returncode == 0) == (not any(sum(one.values()) for one in found.values())), (
        done.stdout + done.stderr
    )
    return found


@needs_compiler
@pytest.mark.slow
def test_every_kernel_of_every_set_equals_plain_loops(tmp_path: Path) -> None:
    found = verdicts(build(tmp_path))
    assert found
    for name, faults in found.items():
        assert faults == dict.fromkeys(KERNELS, 0), name


@needs_compiler
def test_every_kernel_equals_plain_loops_at_low_optimisation(tmp_path: Path) -> None:
    program = build(tmp_path, "-DALCS_OPTIMIZE=-O1")
    found = verdicts(program, "--shapes", "100")
    assert found
    for name, faults in found.items():
        assert faults == dict.fromkeys(KERNELS, 0), name


@needs_compiler
@pytest.mark.slow
def test_sanitizers_find_nothing_over_the_test_shapes(tmp_path: Path) -> None:
    found = verdicts(build(tmp_path, "-DALCS_SANITIZE=address,undefined"))
    assert found
    for name, faults in found.items():
        assert faults == dict.fromkeys(KERNELS, 0), name


@pytest.mark.slow
@pytest.mark.skipif(
    not (shutil.which("cmake") and shutil.which(ARM_COMPILER) and shutil.which(ARM_EMULATOR)),
    reason=f"needs cmake, {ARM_COMPILER} and {ARM_EMULATOR}",
)
def test_the_neon_kernels_equal_plain_loops_under_emulation(tmp_path: Path) -> None:
    found = verdicts(ARM_EMULATOR, build(tmp_path, *ARM_FLAGS))
    assert found == {"neon": dict.fromkeys(KERNELS, 0)}


@needs_compiler
@pytest.mark.slow
def test_a_kernel_that_forgets_its_masks_is_found(tmp_path: Path) -> None:
    """Judges the judge: a copy of the sources whose K2 does not mask must fail."""
    source = tmp_path / "native"
    shutil.copytree(NATIVE, source)
    kernel = source / "conv_k2.hpp"
    planted = kernel.read_text().replace("keep(sums[t], M{} + mask[t])", "sums[t]")
    assert planted != kernel.read_text()
    kernel.write_text(planted)
    found = verdicts(build(tmp_path / "build", "-DALCS_OPTIMIZE=-O1", source=source))
    assert found
    assert all(faults["conv_k2"] > 0 for faults in found.values())
    assert all(faults["conv_k1"] == 0 for faults in found.values())
