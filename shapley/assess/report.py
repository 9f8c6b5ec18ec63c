"""The report of an assessment, JSON and HTML, from its journal alone, with a sign-off."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, select_autoescape
from markupsafe import Markup

from shapley import __version__
from shapley.assess.figure import figure
from shapley.assess.findings import Findings, Rung, find
from shapley.assess.journal import Records, read_journal, sha256
from shapley.assess.levels import in_words
from shapley.files import write_text


def write_report(journal: Path, signed_by: str | None = None) -> dict[str, Any]:
    """Write ``report.json`` and ``report.html`` beside the journal, and return what the former says.

    Args:
        signed_by: who answers for it; unsigned without.

    Raises:
        ShapleyError: not a journal, or a file cannot be written.
    """
    records = read_journal(journal)
    findings = find(records)
    content = _content(records, findings, _sign_off(journal, signed_by))
    environment = Environment(
        loader=PackageLoader("shapley", "assess"), autoescape=select_autoescape(), trim_blocks=True
    )
    svg = Markup(figure(findings.rungs, records.plan.threshold))  # numbers and our own words only
    page = environment.get_template("report.html").render(**content, figure=svg)
    write_text(journal.with_name("report.json"), json.dumps(content, indent=1) + "\n")
    write_text(journal.with_name("report.html"), page)
    return content


def _content(records: Records, findings: Findings, sign_off: dict[str, Any]) -> dict[str, Any]:
    plan, rungs = records.plan, findings.rungs
    record = plan.record()
    record["items"] = len(plan.items)
    return {
        "format": "neuron-shapley-assess-report-1",
        "plan": record,
        "started": records.started,
        "last": records.last,
        "rungs": [_rung(rung) for rung in rungs],
        "end": findings.end,
        "least_tested": _rung(rungs[-1])["applied_text"] if rungs else None,
        "least_safe": None if findings.least_safe is None else _rung(rungs[findings.least_safe])["applied_text"],
        "release": {
            "level": None if findings.release is None else _rung(rungs[findings.release])["applied_text"],
            "margin": plan.margin,
            "why_none": findings.why_none,
        },
        "rise": None if findings.rise is None else _rise(findings),
        "warned": findings.warned,
        "applied_as_asked": all(rung.as_asked for rung in rungs),
        "sign_off": sign_off,
    }


def _rung(rung: Rung) -> dict[str, Any]:
    return {
        "asked": rung.asked.body(),
        "asked_text": rung.asked.text(),
        "applied": [done.body() for done in rung.applied],
        "applied_text": in_words(rung.applied),
        "as_asked": rung.as_asked,
        "strength": rung.strength,
        "items": rung.n,
        "mean": rung.mean,
        **asdict(rung.bounds),
        "verdict": rung.verdict,
    }


def _rise(findings: Findings) -> dict[str, Any]:
    assert findings.rise is not None
    rise, rungs = findings.rise, findings.rungs
    return {
        "p": rise.p,
        "deviation": rise.deviation,
        "items": findings.compared,
        "rise": rise.rise,
        "heavier": in_words(rungs[rise.heavier].applied),
        "lighter": in_words(rungs[rise.lighter].applied),
    }


def _sign_off(journal: Path, signed_by: str | None) -> dict[str, Any]:
    return {
        "by": signed_by,
        "at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "shapley": __version__,
        "journal_sha256": sha256(journal),
    }
