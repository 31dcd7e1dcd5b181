"""Pictures of a report: PNG files and one page, index.html, that shows them beside the table of all figures.

What is drawn follows from the figures' names. A name that ends in `_AXIS_NUMBER`, or in `_NUMBER_callers`, is a point of a line over that
axis; recall and rate over `ef` are drawn against each other; everything else is a bar for each system, or beside other figures of its unit
where only one system has it.
"""

from __future__ import annotations

import html
import re
from collections import defaultdict
from typing import TYPE_CHECKING, Any, Final

from bench.report import readable

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from bench.report import Figure, Report

_ON_AXIS: Final = re.compile(r"(?P<name>.+?)_(?P<axis>ef|round|points|shards|share_percent)_(?P<value>\d+(\.\d+)?)$")
_CALLERS: Final = re.compile(r"(?P<name>.+?)_(?P<value>\d+)_callers?$")
_UNIT_NAMES: Final = {"1/s": "per-second"}
"""What a unit is called in a file's name, where it cannot stand there."""
_MARGIN: Final = 1.08
_PAGE: Final = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 68rem; margin: 2rem auto; padding: 0 1rem; color: #222; }}
table {{ border-collapse: collapse; margin: 1rem 0; }}
th, td {{ text-align: left; padding: 0.25rem 0.9rem 0.25rem 0; border-bottom: 1px solid #ddd; }}
td.value {{ text-align: right; font-variant-numeric: tabular-nums; }}
img {{ max-width: 100%; display: block; margin: 1rem 0 2rem; }}
</style>
<h1>{title}</h1>
<p>{machine}</p>
<h2>Pictures</h2>
{pictures}
<h2>Figures</h2>
{figures}
<h2>Parameters</h2>
{parameters}
</html>
"""

Series = dict[str, list[tuple[float, float]]]
"""Points of each system's line."""


def write(report: Report, directory: Path) -> list[Path]:
    """Write the pictures and the page into a directory, made if need be. Returns the pictures' paths.

    Raises ImportError without matplotlib, which the extra `bench` brings.
    """
    directory.mkdir(parents=True, exist_ok=True)
    lines, bars = sorted_figures(report.figures)
    pictures: list[Path] = []
    for (name, axis), (series, unit) in lines.items():
        if axis == "ef" and name.startswith("recall"):
            continue
        path = directory / f"{report.scenario}-{name}-by-{axis}.png"
        recalls = next(
            (held for (other, on), (held, _) in lines.items() if on == "ef" and other.startswith("recall")), {}
        )
        if axis == "ef" and recalls:
            _draw_lines(path, against(recalls, series), "recall", f"{name}, {unit}", is_log_y=unit == "1/s")
        else:
            _draw_lines(path, series, axis, f"{name}, {unit}", is_log_x=axis != "round")
        pictures.append(path)
    lone: dict[str, dict[str, float]] = defaultdict(dict)
    for name, (values, unit) in bars.items():
        if len(values) == 1:
            lone[unit] |= {f"{system} {name}": value for system, value in values.items()}
            continue
        path = directory / f"{report.scenario}-{name}.png"
        _draw_bars(path, values, f"{name}, {unit}")
        pictures.append(path)
    for unit, values in lone.items():
        path = directory / f"{report.scenario}-in-{_UNIT_NAMES.get(unit, unit)}.png"
        _draw_bars(path, values, f"{report.scenario}, {unit}")
        pictures.append(path)
    (directory / "index.html").write_text(page(report, [path.name for path in pictures]), encoding="utf-8")
    return pictures


def sorted_figures(
    figures: list[Figure],
) -> tuple[dict[tuple[str, str], tuple[Series, str]], dict[str, tuple[dict[str, float], str]]]:
    """Lines by name and axis, and bars by name; each with its unit.

    A line of one point is a bar, under its full name.
    """
    lines: dict[tuple[str, str], tuple[Series, str]] = {}
    names: dict[tuple[str, str], list[Figure]] = defaultdict(list)
    bars: dict[str, tuple[dict[str, float], str]] = {}
    for figure in figures:
        found = _ON_AXIS.match(figure.name) or _CALLERS.match(figure.name)
        if found is None:
            bars.setdefault(figure.name, ({}, figure.unit))[0][figure.system] = figure.value
            continue
        key = found["name"], found.groupdict().get("axis") or "callers"
        series, _ = lines.setdefault(key, (defaultdict(list), figure.unit))
        series[figure.system].append((float(found["value"]), figure.value))
        names[key].append(figure)
    for key, (series, unit) in list(lines.items()):
        if all(len(points) == 1 for points in series.values()):
            del lines[key]
            for figure in names[key]:
                bars.setdefault(figure.name, ({}, unit))[0][figure.system] = figure.value
        for points in series.values():
            points.sort()
    return lines, bars


def against(recalls: Mapping[str, list[tuple[float, float]]], series: Series) -> Series:
    """Replace each point's effort by the recall that the system reached at it."""
    merged: Series = {}
    for system, points in series.items():
        reached = dict(recalls.get(system, []))
        merged[system] = sorted((reached[effort], value) for effort, value in points if effort in reached)
    return merged


def _axes(title: str) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Picture

    picture = Picture(figsize=(9, 5), layout="constrained")
    FigureCanvasAgg(picture)
    axes = picture.add_subplot()
    axes.set_title(title)
    axes.grid(visible=True, alpha=0.3)
    return picture, axes


def _draw_lines(
    path: Path, series: Series, x_label: str, y_label: str, *, is_log_x: bool = False, is_log_y: bool = False
) -> None:
    picture, axes = _axes(f"{y_label} by {x_label}")
    for system, points in series.items():
        style: dict[str, Any] = {"linewidth": 2.5, "zorder": 3} if system.startswith("vecmem") else {"linewidth": 1.2}
        axes.plot([x for x, _ in points], [y for _, y in points], marker="o", markersize=4, label=system, **style)
    if is_log_x:
        axes.set_xscale("log")
    if is_log_y:
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0, top=_MARGIN * max((y for points in series.values() for _, y in points), default=1) or 1)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.legend()
    picture.savefig(path, dpi=120)


def _draw_bars(path: Path, values: Mapping[str, float], title: str) -> None:
    picture, axes = _axes(title)
    picture.set_figheight(max(3.0, 0.4 * len(values) + 1.2))
    colours = ["tab:blue" if system.startswith("vecmem") else "tab:gray" for system in values]
    bars = axes.barh(list(values), list(values.values()), color=colours)
    axes.bar_label(bars, labels=[readable(value) for value in values.values()], padding=4)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    picture.savefig(path, dpi=120)


def page(report: Report, pictures: list[str]) -> str:
    """The page, which names its pictures by their file names."""
    systems = list(dict.fromkeys(figure.system for figure in report.figures))
    names = list(dict.fromkeys(figure.name for figure in report.figures))
    values = {(figure.system, figure.name): figure for figure in report.figures}
    units = {figure.name: figure.unit for figure in report.figures}
    rows = ["<tr><th>figure<th>unit" + "".join(f"<th>{html.escape(system)}" for system in systems)]
    for name in names:
        cells = [
            f'<td class="value">{readable(values[system, name].value)}' if (system, name) in values else "<td>"
            for system in systems
        ]
        rows.append(f"<tr><td>{html.escape(name)}<td>{html.escape(units[name])}" + "".join(cells))
    parameters = [
        f"<tr><th>{html.escape(str(key))}<td>{html.escape(str(value))}" for key, value in report.parameters.items()
    ]
    machine = report.machine
    return _PAGE.format(
        title=html.escape(f"vecmem {report.version}: {report.scenario}"),
        machine=html.escape(f"{report.started_at}, {machine.cores} cores of {machine.cpu}, {machine.memory_gib} GiB"),
        pictures="\n".join(f'<img src="{html.escape(name)}" alt="{html.escape(name[:-4])}">' for name in pictures),
        figures="<table>\n" + "\n".join(rows) + "\n</table>",
        parameters="<table>\n" + "\n".join(parameters) + "\n</table>",
    )
