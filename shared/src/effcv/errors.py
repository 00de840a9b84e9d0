"""The error tree of the project, and the two helpers that word its commonest errors.

    EffcvError
    ├── ArgumentError (ValueError)     a wrong argument: name, value, shape, dtype
    ├── ConfigError (ValueError)       a wrong configuration file
    ├── DataError                      an image, data set or annotation that cannot be used
    ├── CheckpointError                a checkpoint that cannot be trusted or written
    ├── ExportError                    an export that failed or does not match its source
    ├── TrainingError                  training that cannot go on, for example a loss of NaN
    ├── DependencyError (ImportError)  an optional library that is not installed
    ├── BenchError                     a bench that cannot be run or stored
    ├── Interrupted (SystemExit)       stopped by a signal, after saving (exit code 130 or 143)
    └── CheckFailed                    a check that ran and said no (exit code 1)

Every message is one sentence: what was found, what was expected, and the remedy where there is one.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Collection
from types import ModuleType
from typing import Any


class EffcvError(Exception):
    """Base of every error that the project raises on purpose."""


class ArgumentError(EffcvError, ValueError):
    """An argument has the wrong value, shape or type."""


class ConfigError(EffcvError, ValueError):
    """A configuration file is malformed or holds an unknown or wrong entry."""


class DataError(EffcvError):
    """An image, data set or annotation is absent, damaged or not what it says."""


class CheckpointError(EffcvError):
    """A checkpoint is absent, damaged, does not fit the model, or could not be written."""


class ExportError(EffcvError):
    """An export failed, or the exported model does not agree with its source."""


class TrainingError(EffcvError):
    """Training cannot go on."""


class DependencyError(EffcvError, ImportError):
    """An optional library is not installed."""


class BenchError(EffcvError):
    """A bench cannot be run, stored or read."""


class CheckFailed(EffcvError):
    """A check ran to its end and its answer is no; commands exit with 1.

    Attributes:
        data: What the check found; a command prints it before the message.
    """

    def __init__(self, message: str, *, data: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.data = data or {}


class Interrupted(EffcvError, SystemExit):
    """Work was stopped by a signal after its state was saved.

    As a `SystemExit` it ends any program with the right code, caught or not.

    Attributes:
        exit_code: 130 after SIGINT, 143 after SIGTERM.
    """

    def __init__(self, message: str, *, code: int) -> None:
        super().__init__(message)
        self.code = self.exit_code = code


def choose(name: str, known: Collection[str], what: str) -> str:
    """Returns ``name`` if it is one of ``known``.

    Args:
        name: What the user gave.
        known: The names that exist.
        what: What is being named, for the message: ``"dataset"``.

    Raises:
        ArgumentError: ``name`` is unknown; the message suggests the nearest known name.
    """
    names = sorted(filter(None, known))
    if name in known:
        return name
    if not isinstance(name, str):
        raise ArgumentError(f"{what} is {name!r}, expected one of: {', '.join(names)}")
    nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean {nearest[0]!r}? " if nearest else ""
    raise ArgumentError(f"unknown {what} {name!r}; {hint}known: {', '.join(names) or 'none'}")


def need(module: str, *, extra: str, package: str = "effcv") -> ModuleType:
    """Imports an optional library.

    Args:
        module: Dotted module name.
        extra: The extra of ``package`` that installs it.
        package: Distribution that declares the extra.

    Raises:
        DependencyError: It is not installed; the message holds the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != module.split(".")[0]:
            raise  # the library is there but broken: that is another message
        library = module.split(".")[0]
        raise DependencyError(
            f"{library} is not installed and this needs it: pip install '{package}[{extra}]'"
        ) from None
