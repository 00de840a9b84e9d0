"""The frame of the commands: exit codes, sentences, JSON, signals, start-up."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

VERBS = '''
import sys, time
from effcv.errors import ArgumentError, CheckFailed, DataError, Interrupted
from effcv.runtime.cli import Command, Common

def well(value: int = 1, *, common: Common = Common()):
    """Doubles.

    Args:
        value: What is doubled.
    """
    print("a library's chatter")
    return {"twice": 2 * value, "seed": common.seed, "rows": [{"name": "a", "size": 1.5}]}

def check(*, common: Common = Common()): raise CheckFailed("off by 3", data={"error": 3})
def argument(*, common: Common = Common()): raise ArgumentError("width 7 must be even")
def data(*, common: Common = Common()): raise DataError("x.png is truncated\\n at byte 3")
def full(*, common: Common = Common()): raise OSError(28, "No space left on device", "x.bin")
def defect(*, common: Common = Common()): return [][1]
def wait(*, common: Common = Common()):
    print("ready", flush=True)
    time.sleep(30)
def many(*, common: Common = Common()): return {"rows": [{"n": n} for n in range(9999)]}
def device(*, common: Common = Common()): return {"device": str(common.torch_device())}

def main():
    command = Command("tool", version="1.2.3", summary="A tool.")
    for verb in ("well", "check", "argument", "data", "full", "defect", "wait", "many", "device"):
        command.verb(verb, f"verbs:{verb}", f"Does {verb}.")
    command.group("set", "A group.")
    command.verb("set list", "verbs:well", "Lists.")
    return command()

if __name__ == "__main__":
    sys.exit(main())
'''


@pytest.fixture(scope="module")
def tool(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tool")
    (folder / "verbs.py").write_text(VERBS)
    return [sys.executable, str(folder / "verbs.py")]


def run(tool, *args, **options):
    return subprocess.run([*tool, *args], capture_output=True, text=True, timeout=60, **options)


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["check"], 1, "off by 3"),
        (["argument"], 2, "width 7 must be even"),
        (["data"], 3, "x.png is truncated at byte 3"),
        (["full"], 3, "No space left on device"),
        (["defect"], 70, "a defect in tool (IndexError"),
        (["wel"], 2, "well"),
        (["well", "--sed", "1"], 2, "--seed"),
        (["well", "--seed", "-1"], 2, "--seed"),
        (["well", "--seed", "one"], 2, "--seed"),
        (["well", "--threads", "0"], 2, "--threads"),
        (["well", "--config", "absent.toml"], 2, "absent.toml"),
        (["device", "--device", "tpu9"], 2, "expected auto, cpu, cuda"),
    ],
)
def test_each_failure_is_one_sentence_with_its_exit_code(tool, args, code, words):
    done = run(tool, *args)
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_json_stands_alone_on_standard_output(tool):
    done = run(tool, "well", "--value", "4", "--seed", "7", "--json")
    assert json.loads(done.stdout) == {"twice": 8, "seed": 7, "rows": [{"name": "a", "size": 1.5}]}
    assert "chatter" in done.stderr


def test_a_failed_check_still_prints_what_it_found(tool):
    done = run(tool, "check", "--json")
    assert (done.returncode, json.loads(done.stdout)) == (1, {"error": 3})


def test_people_get_lines_and_a_table(tool):
    done = run(tool, "set", "list", "--value", "21")
    assert done.returncode == 0
    assert "42" in done.stdout
    assert "name" in done.stdout
    assert "1.5" in done.stdout


def test_a_config_file_gives_flags_and_the_command_line_wins(tool, tmp_path):
    config = tmp_path / "run.toml"
    config.write_text("value = 5\nseed = 3\n")
    assert json.loads(run(tool, "well", "--config", str(config), "--json").stdout)["twice"] == 10
    done = run(tool, "well", f"--config={config}", "--seed", "4", "--json")
    assert json.loads(done.stdout)["seed"] == 4


@pytest.mark.parametrize("text", ["sed = 3\n", "seed = 'x'\n", "seed = \n"])
def test_a_wrong_config_file_is_a_usage_error(tool, tmp_path, text):
    config = tmp_path / "run.toml"
    config.write_text(text)
    done = run(tool, "well", "--config", str(config))
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signals_end_with_their_codes(tool, number, code):
    with subprocess.Popen([*tool, "wait"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout.readline() == b"ready\n"
        child.send_signal(number)
        assert child.wait(10) == code
        assert b"Traceback" not in child.stderr.read()


def test_a_reader_that_stops_early_is_no_error(tool):
    command = " ".join([*tool, "many"])
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", f"{command} | head -3"], capture_output=True, text=True
    )
    assert done.returncode == 0
    assert done.stderr == ""


def test_help_is_quick_and_free_of_torch():
    code = textwrap.dedent("""
        import sys
        from effcv.__main__ import main
        sys.argv = ["effcv", "--help"]
        assert main() == 0
        assert "torch" not in sys.modules
    """)
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "data" in done.stdout
    assert time.perf_counter() - started < 5  # 0.6 s on a quiet machine; the bound allows for load


def test_doctor_reports_versions_and_data():
    done = subprocess.run(
        [sys.executable, "-m", "effcv", "doctor", "--json"], capture_output=True, text=True
    )
    facts = json.loads(done.stdout)
    assert facts["numpy"].count(".") == 2
    assert "digits8" in facts["data found"]


def test_version_needs_no_parser():
    from effcv import __version__

    code = "import sys; from effcv.__main__ import main; sys.argv = ['effcv', '--version']; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == __version__


def test_lang_c_and_a_narrow_terminal_do_not_break_the_table(tool):
    env = os.environ | {"LANG": "C", "COLUMNS": "20", "TERM": "dumb"}
    assert run(tool, "well", env=env).returncode == 0
