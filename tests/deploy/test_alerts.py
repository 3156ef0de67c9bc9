"""The rules of deploy/prometheus, judged by Prometheus's own promtool: valid, and each alert silent, then firing.

What is scraped in each case, alerts.yml says. That real causes have these effects on a live cluster is for e2e.
"""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

PROMETHEUS = Path(__file__).resolve().parents[2] / "deploy/prometheus"
E2E = Path(__file__).resolve().parents[1] / "e2e"
RULES = sorted((PROMETHEUS / "rules").glob("*.yml"))
CASES: dict[str, dict[str, Any]] = yaml.safe_load(Path(__file__).with_name("alerts.yml").read_text())


def rules() -> list[dict[str, Any]]:
    return [rule for path in RULES for group in yaml.safe_load(path.read_text())["groups"] for rule in group["rules"]]


ALERTS = {rule["alert"]: rule for rule in rules() if "alert" in rule}


def promtool(*argv: str | Path) -> str:
    ended = subprocess.run(["promtool", *map(str, argv)], capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def test_configuration_and_rules_are_valid() -> None:
    promtool("check", "config", PROMETHEUS / "prometheus.yml")  # and the rules that it names
    assert len(RULES) == 5


@pytest.mark.parametrize("alert", ALERTS.values(), ids=ALERTS)
def test_an_alert_says_how_bad_it_is_what_it_is_and_what_to_do(alert: dict[str, Any]) -> None:
    assert alert["labels"]["severity"] in {"critical", "warning", "info"}
    assert set(alert["annotations"]) == {"summary", "runbook"}
    assert all(len(text.split()) >= 7 for text in alert["annotations"].values())


def test_a_page_that_an_alert_sends_to_has_what_it_is_to_show() -> None:
    shown = {"docs/ports.md": "engine-ports", "deploy/kubernetes/README.md": "prefill: [10."}
    sent = {page for alert in ALERTS.values() for page in re.findall(r"[\w/]+\.md", alert["annotations"]["runbook"])}
    assert sent == shown.keys()
    assert [page for page, text in shown.items() if text not in (PROMETHEUS.parents[1] / page).read_text()] == []


def test_every_alert_has_a_case() -> None:
    assert {alert_of(name) for name in CASES} == set(ALERTS)


def test_every_alert_is_seen_to_fire_for_a_real_cause() -> None:
    scenes = "".join((E2E / name).read_text() for name in ("test_alerts.py", "test_vllm_dashboards.py"))
    assert not [name for name in ALERTS if f'"{name}"' not in scenes]


def test_alerts_are_silent_and_then_fire(tmp_path: Path) -> None:
    for path in RULES:
        (tmp_path / path.name).write_text(yaml.safe_dump(without_annotations(yaml.safe_load(path.read_text()))))
    document = {"rule_files": ["*.yml"], "evaluation_interval": "15s", "tests": [case(name) for name in CASES]}
    (tmp_path / "cases").write_text(yaml.safe_dump(document))
    assert "SUCCESS" in promtool("test", "rules", tmp_path / "cases")


def test_a_case_that_does_not_hold_fails(tmp_path: Path) -> None:
    """Or the test before could not."""
    for path in RULES:
        (tmp_path / path.name).write_text(yaml.safe_dump(without_annotations(yaml.safe_load(path.read_text()))))
    wrong = case("LarderPutsWait") | {"input_series": [{"series": "larder_master_waiting_puts", "values": "0x40"}]}
    document = {"rule_files": ["*.yml"], "evaluation_interval": "15s", "tests": [wrong]}
    (tmp_path / "cases").write_text(yaml.safe_dump(document))
    with pytest.raises(AssertionError, match="LarderPutsWait"):
        promtool("test", "rules", tmp_path / "cases")


def without_annotations(document: dict[str, Any]) -> dict[str, Any]:
    """promtool would compare their texts too, and each would have to be written twice."""
    for group in document["groups"]:
        for rule in group["rules"]:
            rule.pop("annotations", None)
    return document


def alert_of(name: str) -> str:
    return name.partition(",")[0]


def case(name: str) -> dict[str, Any]:
    told, alert = CASES[name], alert_of(name)
    labels = ALERTS[alert]["labels"] | told.get("labels", {})
    return {
        "name": name,
        "interval": "15s",
        "input_series": [{"series": series, "values": values} for series, values in told["series"].items()],
        "alert_rule_test": [
            {"eval_time": told["silent"], "alertname": alert, "exp_alerts": []},
            {"eval_time": told["fires"], "alertname": alert, "exp_alerts": [{"exp_labels": labels}]},
        ],
    }
