"""Charts as inline SVG, drawn when the report is written, so that the page needs no library and no network.

Marks have the attribute `data-n`, the number of their trial: the page's script shows a tooltip for the mark under the
mouse and highlights the same trial in every chart.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

import numpy as np
from contourpy import contour_generator
from numpy.typing import NDArray

from binsweep.search.report.axis import Axis, axis_of, axis_value
from binsweep.search.spec.space import Dimension

LEFT, RIGHT, TOP, BOTTOM = 52, 14, 10, 36
BLUE, GREY, ORANGE, RED, GREEN = "#3b6ea5", "#b9bec5", "#d98a1f", "#a40000", "#1a6b2d"


def shade(place: float) -> str:
    """A colour from pale (0, the worst) to dark blue (1, the best)."""
    place = min(max(place, 0.0), 1.0)
    red, green, blue = (round(a + (b - a) * place) for a, b in ((214, 12), (222, 50), (232, 110)))
    return f"#{red:02x}{green:02x}{blue:02x}"


@dataclass
class Chart:
    """A chart with two axes, in pixels of its view box; marks are drawn in the order in which they are added."""

    x: Axis
    y: Axis
    names: tuple[str, str]
    width: int = 560
    height: int = 300
    left: int = LEFT
    marks: list[str] = field(default_factory=list)

    def at(self, x: float, y: float) -> tuple[float, float]:
        """The pixel of a point."""
        return self._pixel(self.x.place(x), self.y.place(y))

    def _pixel(self, across: float, up: float) -> tuple[float, float]:
        """The pixel of a point in the unit square."""
        x = self.left + across * (self.width - self.left - RIGHT)
        return round(x, 1), round(self.height - BOTTOM - up * (self.height - TOP - BOTTOM), 1)

    def line(
        self,
        points: Sequence[tuple[float, float]],
        colour: str,
        number: int | None = None,
        width: float = 1.5,
        steps: bool = False,
    ) -> None:
        """A line through `points`; with `steps` each value holds until the next one."""
        pixels = [self.at(*point) for point in points if all(map(math.isfinite, point))]
        if not pixels:
            return
        path = f"M{pixels[0][0]:g} {pixels[0][1]:g}"
        path += "".join(f"H{x:g}V{y:g}" if steps else f"L{x:g} {y:g}" for x, y in pixels[1:])
        self.marks.append(f'<path d="{path}" stroke="{colour}" stroke-width="{width:g}"{_of(number)}/>')

    def dot(
        self,
        x: float,
        y: float,
        colour: str,
        number: int | None = None,
        radius: float = 3.5,
        cross: bool = False,
    ) -> None:
        """A point, or a cross where a trial was stopped."""
        if not (math.isfinite(x) and math.isfinite(y)):
            return
        a, b = self.at(x, y)
        if cross:
            shape = f'<path d="M{a - 3:g} {b - 3:g}l6 6m0 -6l-6 6" stroke="{colour}" stroke-width="1.5"'
        else:
            shape = f'<circle cx="{a:g}" cy="{b:g}" r="{radius:g}" fill="{colour}"'
        self.marks.append(f"{shape}{_of(number)}/>")

    def bar(
        self, x: float, until: float, y: float, thickness: float, colour: str, number: int | None = None
    ) -> None:
        """A horizontal bar of `thickness` units of the y axis around `y`."""
        a, top = self.at(x, y + thickness / 2)
        b, bottom = self.at(until, y - thickness / 2)
        box = f'x="{a:g}" y="{top:g}" width="{max(b - a, 1):g}" height="{bottom - top:g}"'
        self.marks.append(f'<rect {box} fill="{colour}" stroke="#fff" stroke-width=".5"{_of(number)}/>')

    def contours(
        self, points: Sequence[tuple[float, float]], goodness: Sequence[float], reach: float = 0.2
    ) -> None:
        """Filled contours, a tenth apart, of `goodness` in [0, 1] at `points`.

        Between the points it is a mean weighted by a Gaussian kernel (Nadaraya 1964, Watson 1964), whose standard
        deviation is half of `reach`, a fraction of an axis. Beyond `reach` of every point nothing is drawn. Different
        values of a choice are not averaged.
        """
        across, up = _grid(self.x), _grid(self.y)
        at = np.array([[_unit(self.x, x), _unit(self.y, y)] for x, y in points])
        squared = (
            _distances(self.x, across, at[:, 0])[None] ** 2 + _distances(self.y, up, at[:, 1])[:, None] ** 2
        )
        weights = np.exp(-0.5 * squared / (reach / 2) ** 2)  # [up, across, points]
        with np.errstate(invalid="ignore"):
            means = weights @ np.asarray(goodness) / weights.sum(-1)
        surface = np.ma.masked_where(squared.min(-1) > reach**2, means)
        # Polygons with Matplotlib's path codes: 1 begins a polygon, 79 closes it.
        drawn = contour_generator(across, up, surface, fill_type="OuterCode")
        for low in range(10):
            # The first contour begins below 0 and the last one ends above 1, so that no value lies outside.
            lower, upper = (low or -1) / 10, (low + 1 if low < 9 else 11) / 10
            for corners, codes in zip(*drawn.filled(lower, upper), strict=True):
                pixels = [self._pixel(*corner) for corner in corners]
                path = "".join(
                    "Z" if code == 79 else f"{'M' if code == 1 else 'L'}{x:g} {y:g}"
                    for (x, y), code in zip(pixels, codes, strict=True)
                )
                fill = shade((low + 0.5) / 10)
                # As a style, because the page's style sheet draws paths of marks as lines.
                style = f"fill:{fill};fill-rule:evenodd;opacity:.45"
                self.marks.append(f'<path d="{path}" style="{style}"/>')

    def svg(self) -> str:
        """The whole chart."""
        right, floor = self.width - RIGHT, self.height - BOTTOM
        parts = [f'<svg viewBox="0 0 {self.width} {self.height}" role="img"><g class="grid">']
        for place, text in self.y.ticks():
            y = round(floor - place * (floor - TOP), 1)
            parts += [f'<path d="M{self.left} {y}H{right}"/>', _text(self.left - 6, y + 4, text, "end")]
        for place, text in self.x.ticks():
            x = round(self.left + place * (right - self.left), 1)
            parts += [f'<path d="M{x} {TOP}V{floor}"/>', _text(x, floor + 15, text)]
        parts.append(_text((self.left + right) / 2, self.height - 4, self.names[0], kind="name"))
        parts.append(f'<g transform="translate(11 {(TOP + floor) / 2:g}) rotate(-90)">')
        parts.append(_text(0, 0, self.names[1], kind="name"))
        return "".join([*parts, '</g></g><g class="marks">', *self.marks, "</g></svg>"])


def _grid(axis: Axis) -> NDArray[np.float64]:
    """Where contours are computed, in the unit interval.

    For a choice: just inside both edges of each value's section, and on the edges between sections, which stay empty.
    """
    if not axis.words:
        return np.linspace(0.0, 1.0, 41)
    edges = np.arange(len(axis.words) + 1) / len(axis.words)
    return np.ravel(np.column_stack([edges[:-1] + 1e-6, edges[1:] - 1e-6, edges[1:]]))[:-1]


def _unit(axis: Axis, value: float) -> float:
    """A value's position; for a choice, the middle of its section."""
    return axis.place(round(value) if axis.words else value)


def _distances(axis: Axis, grid: NDArray[np.float64], places: NDArray[np.float64]) -> NDArray[np.float64]:
    """Distances along an axis, [grid, points]. Points with different values of a choice are infinitely far apart."""
    if not axis.words:
        return np.abs(grid[:, None] - places)
    sections = grid * len(axis.words)
    on_edge = np.abs(sections - np.round(sections)) < 1e-9
    same = np.floor(sections)[:, None] == np.floor(places * len(axis.words))
    return np.where(same & ~on_edge[:, None], 0.0, 1e3)


def _text(x: float, y: float, text: str, anchor: str = "middle", kind: str = "") -> str:
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" class="{kind}">{escape(text)}</text>'


def _of(number: int | None) -> str:
    return "" if number is None else f' data-n="{number}"'


def parallel(
    dimensions: Mapping[str, Dimension],
    rows: Sequence[tuple[int, Mapping[str, Any], float]],
    metric: Axis,
    name: str,
    best_high: bool,
) -> str:
    """Parallel coordinates: a line per trial (number, parameters, value), the best ones dark and on top."""
    width, height, top, floor = 1160, 330, 34, 300
    axes = [*(axis_of(dimension) for dimension in dimensions.values()), metric]
    places = [70 + number * (width - 140) / max(1, len(axes) - 1) for number in range(len(axes))]
    parts = [f'<svg viewBox="0 0 {width} {height}" role="img"><g class="marks">']

    def goodness(value: float) -> float:
        return metric.place(value) if best_high else 1 - metric.place(value)

    for number, params, value in sorted(rows, key=lambda row: goodness(row[2])):
        values = [*(axis_value(dimensions[key], params[key]) for key in dimensions), value]
        points = zip(places, axes, values, strict=True)
        path = "L".join(
            f"{x:.0f} {floor - axis.place(value) * (floor - top):.1f}" for x, axis, value in points
        )
        thick = 1 + 1.2 * goodness(value) ** 3
        parts.append(
            f'<path d="M{path}" stroke="{shade(goodness(value))}" stroke-width="{thick:.1f}" data-n="{number}"/>'
        )
    parts.append('</g><g class="grid strong">')
    for x, axis, title in zip(places, axes, [*dimensions, name], strict=True):
        parts += [f'<path d="M{x:.0f} {top}V{floor}"/>', _text(round(x), 18, title, kind="name")]
        for place, text in axis.ticks():
            y = round(floor - place * (floor - top) + 4, 1)
            parts.append(_text(round(x) + 5, y, text, "start", "halo"))
    return "".join([*parts, "</g></svg>"])
