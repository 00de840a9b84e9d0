"""The frame of every command of the project.

A command is a table of verbs. Each verb is a plain function with typed parameters, named by the
text ``"module:function"`` and imported only when it is called, so that ``--help`` costs no torch::

    command = Command("cgd", version=__version__, summary="Compact global descriptors.")
    command.verb("train", "cgd.cli:train", "Train a model with or without gates.")
    sys.exit(command())

A verb takes its own parameters and, as ``common``, the flags that all verbs share. It returns a
dict of JSON types, which the frame prints for people, or as JSON alone with ``--json``; it raises
an `EffcvError` for what is wrong, which the frame turns into one sentence and an exit code:

    0 well · 1 a check failed · 2 usage · 3 bad input · 70 a defect of ours · 130, 143 interrupted
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from cyclopts import App, CycloptsError, Parameter
from cyclopts.config import Toml
from cyclopts.validators import Number

from effcv.bench import usable_cores
from effcv.errors import ArgumentError, CheckFailed, ConfigError, EffcvError, Interrupted

if TYPE_CHECKING:
    import torch

T = TypeVar("T")

OK, FAILED_CHECK, USAGE, BAD_INPUT, DEFECT = 0, 1, 2, 3, 70


@Parameter(name="*")
@dataclass(frozen=True)
class Common:
    """The flags that every verb takes.

    Attributes:
        seed: Seed of everything random; the same seed gives the same result.
        device: ``auto`` (a GPU if there is one), ``cpu``, ``cuda`` or ``cuda:N``.
        threads: Threads to compute with; by default every core this process may use.
        out: Folder or file to write to.
        json: Print JSON alone on standard output.
        resume: Continue the work that was interrupted in ``--out``.
        config: TOML file with values for the flags; flags on the command line win.
    """

    seed: Annotated[int, Parameter(validator=Number(gte=0))] = 0
    device: str = "auto"
    threads: Annotated[int | None, Parameter(validator=Number(gte=1))] = None
    out: Annotated[Path | None, Parameter(alias="-o")] = None
    json: Annotated[bool, Parameter(negative="")] = False
    resume: Annotated[bool, Parameter(negative="")] = False
    config: Path | None = None

    def torch_device(self) -> torch.device:
        """Returns the device, after setting torch's threads.

        Raises:
            ArgumentError: There is no such device here.
        """
        import torch

        torch.set_num_threads(self.threads or usable_cores())
        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        try:
            device = torch.device(self.device)
        except RuntimeError:
            raise ArgumentError(
                f"--device {self.device!r} is not a device; expected auto, cpu, cuda or cuda:N"
            ) from None
        if device.type == "cuda" and not torch.cuda.is_available():
            raise ArgumentError(f"--device {self.device} asks for a GPU and torch finds none here")
        return device


class Command:
    """A command line tool: a name, a version and lazily imported verbs.

    Args:
        name: What the user types.
        version: Printed by ``--version``.
        summary: First line of ``--help``.
    """

    def __init__(self, name: str, *, version: str, summary: str) -> None:
        self.name = name
        self.version = version
        self._app = App(
            name=name,
            help=summary,
            version=version,
            help_format="plaintext",
            result_action="return_value",
            exit_on_error=False,
            print_error=False,
            suppress_keyboard_interrupt=False,
        )
        self._groups: dict[str, App] = {}

    def group(self, name: str, summary: str) -> None:
        """Adds a group of verbs: after ``group("data", ...)`` comes ``verb("data list", ...)``."""
        self._groups[name] = App(name=name, help=summary)
        self._app.command(self._groups[name])

    def verb(self, name: str, target: str, summary: str) -> None:
        """Adds a verb.

        Args:
            name: The verb, or ``"group verb"``.
            target: ``"module:function"``, imported when the verb is called.
            summary: Its line in ``--help``.
        """
        group, _, last = name.rpartition(" ")
        app = self._groups[group] if group else self._app
        app.command(target, name=last, help=summary)

    def __call__(self, argv: Sequence[str] | None = None) -> int:
        """Runs the command and returns its exit code; never raises for what a user can do wrong."""
        tokens = list(sys.argv[1:] if argv is None else argv)
        if tokens[:1] == ["--version"]:
            print(self.version)
            return OK
        with _sigterm_raises():
            try:
                return self._run(tokens)
            except BrokenPipeError:  # the reader, for example `head`, has had enough
                sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - must outlive this function
                return OK

    def _run(self, tokens: list[str]) -> int:
        as_json = "--json" in tokens
        try:
            # What libraries print must not get between the reader and the JSON.
            with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
                self._app.config = _config_file(tokens)
                result = self._app(tokens)
        except CheckFailed as failed:
            show(failed.data, as_json=as_json)
            return self._fail(failed, FAILED_CHECK)
        except Interrupted as stop:
            return self._fail(stop, stop.exit_code)
        except KeyboardInterrupt:
            return self._fail("interrupted", 128 + signal.SIGINT)
        except (CycloptsError, ArgumentError, ConfigError) as error:
            return self._fail(error, USAGE, hint=f"see {self.name} --help")
        except (EffcvError, OSError) as error:
            if isinstance(error, BrokenPipeError):
                raise
            return self._fail(error, BAD_INPUT)
        except Exception as error:
            if os.environ.get("EFFCV_DEBUG"):
                raise
            kind = type(error).__name__
            text = f"a defect in {self.name} ({kind}: {error})"
            return self._fail(text, DEFECT, hint="EFFCV_DEBUG=1 shows where")
        show(result, as_json=as_json)
        sys.stdout.flush()
        return OK

    def _fail(self, error: object, code: int, hint: str = "") -> int:
        text = " ".join(str(error).split())
        print(f"{self.name}: {text}" + (f" ({hint})" if hint else ""), file=sys.stderr)
        return code


def _config_file(tokens: list[str]) -> list[Toml]:
    """Finds ``--config FILE`` among the tokens; cyclopts wants it before it parses them."""
    for index, token in enumerate(tokens):
        name, equals, value = token.partition("=")
        if name == "--config":
            path = value if equals else next(iter(tokens[index + 1 :]), "")
            if not Path(path).is_file():
                raise ConfigError(f"--config {path!r} is not a file")
            return [Toml(path, must_exist=True, use_commands_as_keys=False)]
    return []


@contextlib.contextmanager
def _sigterm_raises() -> Iterator[None]:
    """Makes SIGTERM end the verb like an exception, so that what it opened is closed."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Interrupted("stopped by SIGTERM", code=128 + number)

    try:
        previous = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not in the main thread: the host program owns the signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def show(result: Mapping[str, Any] | None, *, as_json: bool) -> None:
    """Prints a result: JSON alone, or for people lists of rows as tables and the rest as lines."""
    if as_json:
        print(json.dumps(result, indent=2, default=str))
        return
    if not result:
        return
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, markup=False)
    facts = Table.grid(padding=(0, 2))
    for key, value in result.items():
        if isinstance(value, list) and value and isinstance(value[0], Mapping):
            title = None if key == "rows" else key.replace("_", " ")
            table = Table(title=title, title_justify="left")
            for column in value[0]:
                table.add_column(column.replace("_", " "), overflow="fold")
            for row in value:
                table.add_row(*(_text(cell) for cell in row.values()))
            console.print(table)
        else:
            facts.add_row(key.replace("_", " "), _text(value))
    if facts.row_count:
        console.print(facts)


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_text(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_text(item) for item in value)
    return "" if value is None else str(value)


def track(items: Iterable[T], label: str, *, total: int | None = None) -> Iterable[T]:
    """Yields the items under a progress bar on standard error, shown only on a terminal."""
    if not sys.stderr.isatty():
        return items
    from rich.console import Console
    from rich.progress import track as rich_track

    return rich_track(items, label, total=total, console=Console(stderr=True), transient=True)
