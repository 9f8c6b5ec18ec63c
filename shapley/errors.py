"""Errors that are the user's to mend. The command line prints them as one line and exits with code 2."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ShapleyError(Exception):
    """A mistake in what was asked for: the message names the thing, what was expected, and what to do."""


def unknown_name(what: str, name: str, known: Iterable[str]) -> ShapleyError:
    """The error for a name that is not among the known ones, with the nearest of them."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"choose from {', '.join(names[:20])}"
    return ShapleyError(f"unknown {what} {name!r}: {hint}")
