"""The command line as tests call it."""

import sys

from minifloat import cli


def minifloat(*arguments: object) -> int:
    """Run the command line in this process; the exit code."""
    old, sys.argv = sys.argv, ["minifloat", *map(str, arguments)]
    try:
        cli.main()
    except SystemExit as stop:
        return int(stop.code or 0)
    finally:
        sys.argv = old
    return 0
