"""Mistakes a user can make, answered in the user's words.

Every error that is not our own bug is a `UserError`: one sentence that names what to do.
The command line prints it alone and exits with code 2; `assert` is left for our own bugs.
"""

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(ValueError):
    """A mistake in what the user asked for, worded for the user."""


def unknown(kind: str, name: str, known: Iterable[str]) -> UserError:
    """The error for a name that does not exist, offering the close ones."""
    choices = sorted(known)
    close = get_close_matches(name, choices, n=3, cutoff=0.5)
    if close:
        hint = "did you mean " + " or ".join(repr(choice) for choice in close) + "?"
    else:
        hint = "known: " + ", ".join(choices)
    return UserError(f"unknown {kind} {name!r}; {hint}")
