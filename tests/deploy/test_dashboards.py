"""The dashboards' files: made from panels.yml, complete, and each panel with a question. What they show is for e2e."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.grafana.build import HERE, dashboards

FILES = sorted(HERE.glob("*.json"))
BOARDS: dict[str, dict[str, Any]] = {path.stem: json.loads(path.read_text()) for path in FILES}
PANELS = [(board, panel) for board in BOARDS.values() for panel in board["panels"]]


def test_the_files_are_what_panels_yml_says() -> None:
    assert {path.name: path.read_text() for path in FILES} == dashboards(), "run python -m deploy.grafana.build"


@pytest.mark.parametrize("board", BOARDS.values(), ids=BOARDS)
def test_a_dashboard_can_be_loaded_beside_the_others(board: dict[str, Any]) -> None:
    assert board["id"] is None  # Grafana gives it
    assert [other["title"] for other in BOARDS.values() if other["uid"] == board["uid"]] == [board["title"]]
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)
    cells = [cell for panel in board["panels"] for cell in covered(panel["gridPos"])]
    assert len(set(cells)) == len(cells), "panels overlap"
    assert max(x for x, _ in cells) < 24


@pytest.mark.parametrize(("board", "panel"), PANELS, ids=[f"{b['title']}: {p['title']}" for b, p in PANELS])
def test_a_panel_answers_a_question_from_the_chosen_source(board: dict[str, Any], panel: dict[str, Any]) -> None:
    assert "?" in panel["description"]
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert board["templating"]["list"][0]["name"] == "datasource"
    for target in panel["targets"]:
        assert target["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert target["legendFormat"] or panel["type"] == "table"


def test_what_grafana_is_provisioned_with() -> None:
    [source] = yaml.safe_load((HERE / "provisioning/datasources/prometheus.yml").read_text())["datasources"]
    scraped = yaml.safe_load((Path(HERE).parent / "prometheus/prometheus.yml").read_text())["global"]
    assert source["type"] == "prometheus"
    assert source["jsonData"]["timeInterval"] == scraped["scrape_interval"]


def covered(place: dict[str, int]) -> list[tuple[int, int]]:
    return [(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])]
