"""Lines over time as an SVG, without a plotting library."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

Series = Mapping[str, Sequence[tuple[float, float]]]
"""Points (x, y) by name, from x = 0 and y = 0 up; drawn in the order given, named on the right."""

_COLORS = (
    "#4f46e5", "#059669", "#d97706", "#dc2626", "#0891b2", "#7c3aed", "#65a30d", "#be185d", "#475569", "#0f766e", "#b45309",
    "#1d4ed8",
)  # fmt: skip
_WIDTH, _HEIGHT = 860, 460
_PANEL_HEIGHT = 200
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 230, 44, 44


def lines(title: str, x_label: str, y_label: str, series: Series) -> str:
    return _document(title, x_label, {y_label: series}, _HEIGHT)


def panels(title: str, x_label: str, series: Mapping[str, Series]) -> str:
    """Several diagrams above each other with one x-axis; `series` by the label of the y-axis."""
    return _document(title, x_label, series, _TOP + _BOTTOM + _PANEL_HEIGHT * len(series))


def _document(title: str, x_label: str, series: Mapping[str, Series], height: int) -> str:
    most_x = max((x for one in series.values() for points in one.values() for x, _ in points), default=1.0) or 1.0
    each = (height - _TOP - _BOTTOM) / len(series)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" font-family="system-ui, sans-serif"'
        f' font-size="12" role="img" aria-label="{escape(title)}">',
        f'<rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<text x="{_LEFT}" y="18" font-size="15" fill="#0f172a">{escape(title)}</text>',
    ]
    color = 0
    for number, (y_label, one) in enumerate(series.items()):
        top = _TOP + each * number
        last = number == len(series) - 1
        parts += _panel(y_label, one, most_x, top, top + each - (0 if last else _BOTTOM - 14), color)
        color += len(one)
    step_x = _step(most_x)
    for tick in range(math.floor(most_x / step_x) + 1):
        x = _LEFT + (_WIDTH - _RIGHT - _LEFT) * tick * step_x / most_x
        label = f'text-anchor="middle" fill="#475569">{tick * step_x:g}</text>'
        parts.append(f'<text x="{x:.1f}" y="{height - _BOTTOM + 18}" {label}')
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(f'<text x="{middle:.0f}" y="{height - 8}" text-anchor="middle" fill="#0f172a">{escape(x_label)}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _panel(y_label: str, series: Series, most_x: float, top: float, bottom: float, first_color: int) -> list[str]:
    right = _WIDTH - _RIGHT
    most = max((y for points in series.values() for _, y in points), default=1.0) or 1.0
    counts = all(float(y).is_integer() for points in series.values() for _, y in points)
    step_y = max(_step(most), 1.0) if counts else _step(most)
    most_y = math.ceil(most / step_y) * step_y or 1.0

    def place(x: float, y: float) -> str:
        return f"{_LEFT + (right - _LEFT) * x / most_x:.1f} {bottom - (bottom - top) * y / most_y:.1f}"

    parts = []
    for tick in range(round(most_y / step_y) + 1):
        x, y = place(0, tick * step_y).split()
        parts.append(f'<path d="M{x} {y}H{right}" stroke="#e2e8f0"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{float(y) + 4:.1f}" text-anchor="end" fill="#475569">{tick * step_y:g}</text>')
    parts.append(f'<text x="{_LEFT}" y="{top - 8:.1f}" text-anchor="start" fill="#0f172a">{escape(y_label)}</text>')
    for number, (name, points) in enumerate(series.items()):
        color = _COLORS[(first_color + number) % len(_COLORS)]
        dashes = ' stroke-dasharray="5 3"' if first_color + number >= len(_COLORS) else ""
        path = "L".join(place(x, y) for x, y in points)
        parts.append(f'<path d="M{path}" fill="none" stroke="{color}" stroke-width="1.6"{dashes}/>')
        row = top + 16 * number
        parts.append(f'<path d="M{right + 14} {row:g}h18" stroke="{color}" stroke-width="2.4"{dashes}/>')
        parts.append(f'<text x="{right + 38}" y="{row + 4:g}" fill="#0f172a">{escape(name)}</text>')
    return parts


def _step(most: float) -> float:
    """One of 1, 2 and 5 times a power of ten, so that there are at most ten ticks."""
    power = 10.0 ** math.floor(math.log10(most))
    return next(step for step in (power / 5, power / 2, power, 2 * power) if most / step <= 10)
