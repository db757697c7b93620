"""Whether a layer's name is meant by an entry of a reader's configuration."""

import re
from fnmatch import fnmatchcase


def matches(name: str, target: str) -> bool:
    """compressed-tensors' targets: a class name, a module's full name or `re:` and a pattern."""
    if target.startswith("re:"):
        return re.match(target[3:], name) is not None
    return target in ("Linear", name)


def excluded(name: str, patterns: list[str]) -> bool:
    """ModelOpt's and Quark's lists: full names or globs."""
    return any(name == pattern or fnmatchcase(name, pattern) for pattern in patterns)
