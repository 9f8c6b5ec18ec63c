"""The figure of a report, as SVG: the score of every rung with its interval, and the threshold."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from shapley.assess.findings import Rung

_WIDTH, _HEIGHT = 760, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 60, 20, 20, 60
_COLOURS = {"safe": "#00664b", "danger": "#a33c00", "undecided": "#555555", "open": "#555555"}


def figure(rungs: Sequence[Rung], threshold: float) -> str:
    """Rungs at equal distances, from heavy (left) to light, by what was applied of the kind asked for; scores from 0 to 1."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" font-size="12" '
        'font-family="system-ui, sans-serif"><title>Mean score at each level, with intervals and the threshold</title>'
    ]
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = _y(tick)
        parts.append(_line(_LEFT, y, _WIDTH - _RIGHT, y, "#eeeeee"))
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    parts.append(_line(_LEFT, _y(threshold), _WIDTH - _RIGHT, _y(threshold), "#a33c00", 'stroke-dasharray="6 4"'))
    parts.append(
        f'<text x="{_WIDTH - _RIGHT}" y="{_y(threshold) - 5:.1f}" text-anchor="end" fill="#a33c00">threshold</text>'
    )
    step = (_WIDTH - _LEFT - _RIGHT) / max(len(rungs), 1)
    for i, rung in enumerate(rungs):
        parts += _mark(rung, _LEFT + step * (i + 0.5))
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(
        f'<text x="{middle}" y="{_HEIGHT - 8}" text-anchor="middle">strength applied, heavy to light</text></svg>'
    )
    return "".join(parts)


def _mark(rung: Rung, x: float) -> list[str]:
    colour, low, high = _COLOURS[rung.verdict], _y(rung.bounds.low), _y(rung.bounds.high)
    return [
        _line(x, low, x, high, colour, 'stroke-width="2"'),
        _line(x - 6, low, x + 6, low, colour),
        _line(x - 6, high, x + 6, high, colour),
        f'<circle cx="{x:.1f}" cy="{_y(rung.mean):.1f}" r="4.5" fill="{colour}"/>',
        f'<text x="{x:.1f}" y="{_HEIGHT - _BOTTOM + 18}" text-anchor="middle">{rung.strength:g}</text>',
        f'<text x="{x:.1f}" y="{_HEIGHT - _BOTTOM + 33}" text-anchor="middle" fill="{colour}">{escape(rung.verdict)}</text>',
    ]


def _y(score: float) -> float:
    return _TOP + (1 - score) * (_HEIGHT - _TOP - _BOTTOM)


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, more: str = "") -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" {more}/>'
