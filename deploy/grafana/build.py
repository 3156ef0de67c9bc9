"""Writes the dashboards beside this file from panels.yml: `python -m deploy.grafana.build`.

What a panel looks like in Grafana 12's JSON is decided here; what it shows, there. Edit those, never the JSON.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml

HERE: Final = Path(__file__).parent
GRID_WIDTH: Final = 24
HEIGHTS: Final = {"stat": 5, "timeseries": 8, "table": 8}
PLUGIN: Final = "12.2.0"
SCHEMA: Final = 41
SOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}


THRESHOLDS: Final = {
    "none": {0: "green"},
    "any_is_bad": {0: "green", 0.001: "red"},
    "full": {0: "green", 0.9: "yellow", 0.97: "red"},
    "all_or_red": {0: "red", 1: "green"},
}
QUANTILES: Final = (0.5, 0.99)


@dataclass
class Panel:
    """One of panels.yml, with what it need not say."""

    title: str
    question: str
    queries: dict[str, str] = field(default_factory=dict)
    quantiles: dict[str, Any] = field(default_factory=dict)
    unit: str = "short"
    kind: str = "timeseries"
    width: int = 8
    thresholds: str | dict[float, str] = "none"
    stacked: bool = False
    words: dict[str, str] = field(default_factory=dict)
    nothing: str = ""
    column: str = "Value"

    def targets(self) -> dict[str, str]:
        """Every query, by its legend."""
        return self.queries | (_quantiles(**self.quantiles) if self.quantiles else {})

    def steps(self) -> dict[float, str]:
        return THRESHOLDS[self.thresholds] if isinstance(self.thresholds, str) else self.thresholds


def dashboards() -> dict[str, str]:
    """The text of each file, by its name."""
    boards = yaml.safe_load((HERE / "panels.yml").read_text())
    return {f"{name}.json": json.dumps(_dashboard(name, board), indent=2) + "\n" for name, board in boards.items()}


def _quantiles(of: str, by: tuple[str, ...] = (), where: str = "") -> dict[str, str]:
    selected = f"{of}_bucket{f'{{{where}}}' if where else ''}"
    rates = f"sum by ({', '.join(['le', *by])}) (rate({selected}[$__rate_interval]))"
    legend = "".join(f"{{{{{label}}}}} " for label in by)
    return {f"{legend}p{share * 100:g}": f"histogram_quantile({share}, {rates})" for share in QUANTILES}


def _dashboard(name: str, board: dict[str, Any]) -> dict[str, Any]:
    return {
        "annotations": {"list": [_alerts_as_annotations()]},
        "description": board["description"],
        "editable": True,
        "fiscalYearStartMonth": 0,
        "graphTooltip": 1,
        "id": None,
        "links": [_links()],
        "panels": _laid_out([Panel(**panel) for panel in board["panels"]]),
        "preload": False,
        "refresh": "10s",
        "schemaVersion": SCHEMA,
        "tags": ["larder"],
        "templating": {"list": [_source_variable(), *_variables(board)]},
        "time": {"from": "now-1h", "to": "now"},
        "timepicker": {},
        "timezone": "browser",
        "title": board["title"],
        "uid": f"larder-{name}",
        "version": 1,
        "weekStart": "",
    }


def _laid_out(panels: list[Panel]) -> list[dict[str, Any]]:
    """From left to right, and on the next line when a panel does not fit."""
    made: list[dict[str, Any]] = []
    x = y = line = 0
    for number, panel in enumerate(panels, 1):
        height = HEIGHTS[panel.kind]
        if x + panel.width > GRID_WIDTH:
            x, y, line = 0, y + line, 0
        place = {"h": height, "w": panel.width, "x": x, "y": y}
        x, line = x + panel.width, max(line, height)
        made.append(_panel(number, panel, place))
    return made


def _panel(number: int, panel: Panel, place: dict[str, int]) -> dict[str, Any]:
    colour = "palette-classic" if panel.kind == "timeseries" else "thresholds"
    defaults: dict[str, Any] = {
        "color": {"mode": colour},
        "custom": _custom(panel),
        "mappings": [_mapping(panel.words)] if panel.words else [],
        "thresholds": {
            "mode": "absolute",
            "steps": [{"color": color, "value": value} for value, color in panel.steps().items()],
        },
        "unit": panel.unit,
    }
    if panel.kind == "timeseries":
        defaults["min"] = 0
    if panel.thresholds == "full":  # else small shares, which matter, would lie flat at the bottom
        defaults["max"] = 1
    if panel.nothing:
        defaults["noValue"] = panel.nothing
    return {
        "datasource": SOURCE,
        "description": panel.question,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "gridPos": place,
        "id": number,
        "options": _options(panel),
        "pluginVersion": PLUGIN,
        "targets": [
            _target(panel, chr(ord("A") + index), legend, expr)
            for index, (legend, expr) in enumerate(panel.targets().items())
        ],
        "title": panel.title,
        "transformations": _transformations(panel),
        "type": panel.kind,
    }


def _target(panel: Panel, ref: str, legend: str, expr: str) -> dict[str, Any]:
    instant = panel.kind == "table"
    return {
        "datasource": SOURCE,
        "editorMode": "code",
        "expr": expr,
        "format": "table" if instant else "time_series",
        "instant": instant,
        "legendFormat": legend,
        "range": not instant,
        "refId": ref,
    }


def _custom(panel: Panel) -> dict[str, Any]:
    if panel.kind == "table":
        return {"align": "auto", "cellOptions": {"type": "auto"}, "inspect": False}
    if panel.kind == "stat":
        return {}
    return {
        "drawStyle": "line",
        "fillOpacity": 30 if panel.stacked else 8,
        "lineInterpolation": "linear",
        "lineWidth": 1,
        "pointSize": 4,
        "scaleDistribution": {"type": "linear"},
        "showPoints": "never",
        "spanNulls": False,
        "stacking": {"group": "A", "mode": "normal" if panel.stacked else "none"},
        "thresholdsStyle": {"mode": "line" if len(panel.steps()) > 1 else "off"},
    }


def _options(panel: Panel) -> dict[str, Any]:
    if panel.kind == "table":
        return {"cellHeight": "sm", "footer": {"show": False, "reducer": ["sum"], "fields": ""}, "showHeader": True}
    if panel.kind == "stat":
        return {
            "colorMode": "background",
            "graphMode": "none",
            "justifyMode": "auto",
            "orientation": "auto",
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
            "textMode": "auto",
            "wideLayout": True,
        }
    return {
        "legend": {"calcs": ["lastNotNull", "max"], "displayMode": "table", "placement": "bottom", "showLegend": True},
        "tooltip": {"hideZeros": False, "mode": "multi", "sort": "desc"},
    }


def _transformations(panel: Panel) -> list[dict[str, Any]]:
    if panel.kind != "table":
        return []
    renamed = {"Value": panel.column} | {f"Value #{chr(65 + n)}": legend for n, legend in enumerate(panel.queries)}
    return [
        {"id": "merge", "options": {}},
        {"id": "organize", "options": {"excludeByName": {"Time": True}, "renameByName": renamed}},
    ]


def _mapping(words: dict[str, str]) -> dict[str, Any]:
    options = {value: {"index": index, "text": text} for index, (value, text) in enumerate(words.items())}
    return {"options": options, "type": "value"}


def _source_variable() -> dict[str, Any]:
    return {
        "current": {},
        "hide": 0,
        "includeAll": False,
        "label": "Data source",
        "multi": False,
        "name": "datasource",
        "options": [],
        "query": "prometheus",
        "refresh": 1,
        "regex": "",
        "type": "datasource",
    }


def _variables(board: dict[str, Any]) -> list[dict[str, Any]]:
    return [_variable(label, metric) for label, metric in board.get("variables", {}).items()]


def _variable(label: str, metric: str) -> dict[str, Any]:
    query = f"label_values({metric},{label})"
    return {
        "allValue": ".*",
        "current": {"text": ["All"], "value": ["$__all"]},
        "datasource": SOURCE,
        "definition": query,
        "hide": 0,
        "includeAll": True,
        "label": label.capitalize(),
        "multi": True,
        "name": label,
        "options": [],
        "query": {"qryType": 1, "query": query, "refId": "PrometheusVariableQueryEditor-VariableQuery"},
        "refresh": 2,
        "regex": "",
        "sort": 1,
        "type": "query",
    }


def _links() -> dict[str, Any]:
    return {
        "asDropdown": False,
        "icon": "external link",
        "includeVars": False,
        "keepTime": True,
        "tags": ["larder"],
        "targetBlank": False,
        "title": "Larder",
        "tooltip": "",
        "type": "dashboards",
        "url": "",
    }


def _alerts_as_annotations() -> dict[str, Any]:
    return {
        "datasource": SOURCE,
        "enable": True,
        "expr": 'ALERTS{alertname=~"Larder.+",alertstate="firing",severity!="info"}',
        "hide": False,
        "iconColor": "red",
        "name": "Alerts",
        "step": "30s",
        "tagKeys": "severity",
        "titleFormat": "{{alertname}}",
    }


def main() -> None:
    """Write them."""
    for name, text in dashboards().items():
        (HERE / name).write_text(text)
        print(f"wrote {HERE / name}")


if __name__ == "__main__":
    main()
