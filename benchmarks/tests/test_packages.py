"""The contract that every package keeps, checked on whatever packages are installed."""

import ast
import importlib
import importlib.metadata
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MEMBERS = sorted(path.parent for path in ROOT.glob("*/pyproject.toml")) + sorted(
    path.parent for path in ROOT.glob("packages/*/pyproject.toml")
)
MEMBERS = [
    folder
    for folder in MEMBERS
    if any(importlib.util.find_spec(i.parent.name) for i in folder.glob("src/*/__init__.py"))
]
FOLDERS = [folder for folder in MEMBERS if folder.parent.name == "packages"]
BUDGET_S = {"smoke": 15, "quick": 120, "claims": 3600}


def import_name(folder):
    (init,) = folder.glob("src/*/__init__.py")
    return init.parent.name


def python(code, *, timeout=60):
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=timeout
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def name_of(folder):
    return folder.name


each_package = pytest.mark.parametrize("folder", FOLDERS, ids=name_of)
each_member = pytest.mark.parametrize("folder", MEMBERS, ids=name_of)


@each_package
def test_it_imports_with_its_siblings_absent_and_without_torch(folder):
    siblings = {import_name(other) for other in FOLDERS if other != folder} | {"effcv_bench"}
    python(f"""
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {siblings!r}:
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Absent())
import {import_name(folder)}
assert "torch" not in sys.modules
""")


@each_package
def test_every_help_page_opens_without_torch(folder):
    name = import_name(folder)
    listed = python(f"""
import sys
from {name}.__main__ import main
from effcv.runtime import cli
verbs = []
add = cli.Command.verb
def verb(self, name, target, summary):
    verbs.append(name)
    add(self, name, target, summary)
cli.Command.verb = verb
sys.argv = ["x", "--help"]
assert main() == 0
for verb in list(verbs):
    sys.argv = ["x", *verb.split(), "--help"]
    assert main() == 0, verb
assert "torch" not in sys.modules
print("\\n" + " ".join(verbs))
""")
    assert {"info", "demo", "bench", "doctor"} <= set(listed.splitlines()[-1].split())


@each_package
def test_info_is_json_without_torch(folder):
    out = python(f"""
import sys
from {import_name(folder)}.__main__ import main
sys.argv = ["x", "info", "--json"]
assert main() == 0
assert "torch" not in sys.modules
""")
    assert json.loads(out)


@each_package
def test_public_names_exist_and_are_documented(folder):
    module = importlib.import_module(import_name(folder))
    for name in module.__all__:
        assert (getattr(module, name).__doc__ or "").strip(), name


@each_package
def test_cases_stay_within_the_budgets_of_the_profiles(folder):
    entry = next(
        e for e in importlib.metadata.entry_points(group="effcv.bench")
        if e.value.partition(".")[0].partition(":")[0] == import_name(folder)
    )  # fmt: skip
    cases = entry.load()()
    assert len({case.name for case in cases}) == len(cases)
    assert any("smoke" in case.budget_s for case in cases)
    for profile, limit in BUDGET_S.items():
        assert sum(case.budget_s.get(profile, 0) for case in cases) <= limit, profile


@each_member
def test_version_changelog_and_readme_agree(folder):
    module = importlib.import_module(import_name(folder))
    changelog = (folder / "CHANGELOG.md").read_text()
    assert f"## [{module.__version__}]" in changelog
    assert len((folder / "README.md").read_text().splitlines()) > 20
    assert (folder / "src" / import_name(folder) / "py.typed").exists()
    assert (folder / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()


@each_member
def test_python_in_the_readme_runs(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    python("\n".join(blocks), timeout=300)


@each_package
def test_commands_in_the_readme_exist(folder):
    """Every verb and flag that the README shows parses; nothing is run."""
    text = (folder / "README.md").read_text()
    entry = next(
        e for e in importlib.metadata.entry_points(group="console_scripts")
        if e.value == f"{import_name(folder)}.__main__:main"
    )  # fmt: skip
    command = [sys.executable, "-m", import_name(folder)]
    shown = re.findall(rf"^ *{entry.name} ([\w-]+)(.*)$", text, re.MULTILINE)
    assert len(shown) >= 3
    for verb, rest in shown:
        out = subprocess.run([*command, verb, "--help"], capture_output=True, text=True)
        assert out.returncode == 0, verb
        for flag in re.findall(r"--[\w-]+", rest):
            assert flag in out.stdout, f"{verb} {flag}"


@each_member
def test_files_and_functions_are_short_enough_to_read(folder):
    for path in folder.glob("src/**/*.py"):
        text = path.read_text()
        assert len(text.splitlines()) <= 500, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                start = node.body[ast.get_docstring(node) is not None :][:1] or [node]
                length = node.end_lineno - start[0].lineno + 1
                assert length <= 60, f"{path}: {node.name}"
