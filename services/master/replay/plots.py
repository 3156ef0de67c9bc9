"""Figures as pictures: bars for a terminal, and an SVG chart that can be read on light and dark backgrounds."""

import math
from collections.abc import Callable, Iterator, Sequence
from html import escape
from typing import Final

from services.master.replay.figures import Figures, Point

WIDTH: Final = 48
EIGHTHS: Final = " ▏▎▍▌▋▊▉"
W, H, LEFT, RIGHT, TOP, BOTTOM = 720, 420, 64, 24, 56, 64
COLORS: Final = {"optimum": "best", "LRU": "plain", "Larder": "ours"}
STYLE: Final = """
  text { font: 13px system-ui, sans-serif; fill: #24292f; }
  .title { font-size: 15px; font-weight: 600; } .small { font-size: 11px; fill: #57606a; }
  .grid { stroke: #d0d7de; stroke-width: 1; } .all { stroke: #57606a; stroke-dasharray: 2 4; }
  .ours { stroke: #0969da; fill: #0969da; } .plain { stroke: #9a6700; fill: #9a6700; }
  .best { stroke: #57606a; fill: #57606a; } .line { fill: none; stroke-width: 2; } .best.line { stroke-dasharray: 6 4; }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3; } .small { fill: #9198a1; } .grid { stroke: #3d444d; } .all { stroke: #9198a1; }
    .ours { stroke: #4493f8; fill: #4493f8; } .plain { stroke: #d29922; fill: #d29922; }
    .best { stroke: #9198a1; fill: #9198a1; } .line { fill: none; }
  }
"""


def bar(point: Point, top: float) -> str:
    """Larder's share as a bar, LRU's as a stroke in or behind it, the optimum's as a dot."""
    eighths = round(8 * WIDTH * point.shares["Larder"] / top) if top else 0
    cells = list(("█" * (eighths // 8) + EIGHTHS[eighths % 8]).rstrip().ljust(WIDTH + 1))
    for name, mark in (("optimum", "●"), ("LRU", "│")):
        if name in point.shares:
            cells[min(WIDTH, round(WIDTH * point.shares[name] / top) if top else 0)] = mark
    return "".join(cells).rstrip()


LEGEND: Final = "█ Larder  │ LRU  ● optimum"


def chart(figures: Figures, title: str) -> str:
    """An SVG document."""
    x, y = _scales(figures)
    parts = [*_frame(figures, title, x, y)]
    for name, style in COLORS.items():
        points = [(x(point.capacity_blocks), y(point.shares[name])) for point in figures.points if name in point.shares]
        path = " ".join(f"{across:.1f},{down:.1f}" for across, down in points)
        parts.append(f'<polyline class="{style} line" points="{path}"/>')
        parts += [f'<circle class="{style}" cx="{across:.1f}" cy="{down:.1f}" r="3"/>' for across, down in points]
    parts += _legend(figures)
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {W} {H}" role="img" aria-label="{escape(title)}">\n'
        f"<style>{STYLE}</style>\n{body}\n</svg>\n"
    )


def _scales(figures: Figures) -> tuple[Callable[[float], float], Callable[[float], float]]:
    sizes = [point.capacity_blocks for point in figures.points]
    low, high = math.log(min(sizes)), math.log(max(sizes))
    top = highest(figures)

    def across(size: float) -> float:
        return LEFT + (W - LEFT - RIGHT) * ((math.log(size) - low) / (high - low) if high > low else 0.5)

    def down(share: float) -> float:
        return H - BOTTOM - (H - TOP - BOTTOM) * (share / top if top else 0)

    return across, down


def highest(figures: Figures) -> float:
    return max([figures.unbounded, *(share for point in figures.points for share in point.shares.values())])


def _frame(figures: Figures, title: str, x: Callable[[float], float], y: Callable[[float], float]) -> Iterator[str]:
    yield f'<text class="title" x="{LEFT}" y="22">{escape(title)}</text>'
    for share in _ticks(highest(figures)):
        yield f'<line class="grid" x1="{LEFT}" x2="{W - RIGHT}" y1="{y(share):.1f}" y2="{y(share):.1f}"/>'
        yield f'<text class="small" x="{LEFT - 8}" y="{y(share) + 4:.1f}" text-anchor="end">{100 * share:g} %</text>'
    for point in figures.points:
        said = size_name(point)
        yield (
            f'<text class="small" x="{x(point.capacity_blocks):.1f}" y="{H - BOTTOM + 18}" text-anchor="middle">'
            f"{said}</text>"
        )
    everything = y(figures.unbounded)
    yield f'<line class="all" x1="{LEFT}" x2="{W - RIGHT}" y1="{everything:.1f}" y2="{everything:.1f}"/>'
    unit = "pool" if figures.points[0].capacity_bytes else "pool, blocks"
    yield f'<text class="small" x="{(LEFT + W - RIGHT) / 2}" y="{H - BOTTOM + 40}" text-anchor="middle">{unit}</text>'


def _legend(figures: Figures) -> Iterator[str]:
    at = LEFT
    for name, style in (*reversed(COLORS.items()), ("a pool that holds everything", "all")):
        yield f'<line class="{style} line" x1="{at}" x2="{at + 24}" y1="40" y2="40"/>'
        yield f'<text x="{at + 30}" y="44">{name}</text>'
        at += 48 + 8 * len(name)


def _ticks(top: float) -> Sequence[float]:
    """Shares to draw lines at: four to ten of them, round."""
    step = next((step for step in (0.01, 0.02, 0.05, 0.1) if top / step <= 9), 0.2)
    return [round(step * number, 2) for number in range(int(top / step) + 1)]


def size_name(point: Point) -> str:
    """The pool's size as people say it: bytes where they are known, else blocks."""
    value, units = (point.capacity_bytes, ("B", "kB", "MB", "GB", "TB", "PB")) if point.capacity_bytes else (
        point.capacity_blocks, ("", "k", "M", "G")
    )  # fmt: skip
    number = float(value)
    for unit in units:
        if float(f"{number:.3g}") < 1000 or unit == units[-1]:
            break
        number /= 1000
    return f"{number:.3g} {unit}".strip() if point.capacity_bytes else f"{number:.3g}{unit}"
