"""The record of players as one self-contained page."""

from __future__ import annotations

import json
from typing import Any

from jinja2 import Environment, PackageLoader, select_autoescape
from markupsafe import Markup

from shapley import __version__


def page(record: dict[str, Any], title: str) -> str:
    """HTML that needs nothing else: it opens offline, searches and sorts. What is searched for and sorted by is in the address
    behind ``#``, so that a view can be kept and passed on."""
    environment = Environment(
        loader=PackageLoader("shapley"), autoescape=select_autoescape(), trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("neurons.html").render(
        record=record, data=_script(record), title=title, version=__version__
    )


def _script(record: dict[str, Any]) -> Markup:
    """JSON inside a script element: nothing in a passage can end the element."""
    text = json.dumps(record, separators=(",", ":"), ensure_ascii=False)
    for mark in "<>&\u2028\u2029":
        text = text.replace(mark, f"\\u{ord(mark):04x}")
    return Markup(text)
