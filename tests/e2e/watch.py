"""A Prometheus with the rules and jobs of deploy/prometheus, in a hurry: it watches what a test starts.

Nothing of the rules is weakened: an alert's expression is as it is, only `for` is a second, as scrapes are half of one.
"""

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode
from urllib.request import urlopen

import yaml

from demo.cluster import HOST, free_port
from demo.processes import Process

DEPLOYED = Path(__file__).resolve().parents[2] / "deploy/prometheus"
START_S = 30.0
FIRES_S = 20.0
DISCOVERIES = ("static_configs", "dns_sd_configs", "file_sd_configs")


class Sample(NamedTuple):
    labels: dict[str, str]
    value: float


class Prometheus:
    """Started at once; `targets` are its jobs' addresses, and may be told anew with `watch`."""

    def __init__(self, scratch: Path, targets: Mapping[str, list[str]], interval: str = "500ms") -> None:
        self._scratch = scratch / "prometheus"
        (self._scratch / "rules").mkdir(parents=True)
        for path in (DEPLOYED / "rules").glob("*.yml"):
            (self._scratch / "rules" / path.name).write_text(yaml.safe_dump(hurried(yaml.safe_load(path.read_text()))))
        config = yaml.safe_load((DEPLOYED / "prometheus.yml").read_text())
        config["global"] |= dict.fromkeys(("scrape_interval", "evaluation_interval", "scrape_timeout"), interval)
        for job in config["scrape_configs"]:
            for discovery in DISCOVERIES:
                job.pop(discovery, None)
            job["file_sd_configs"] = [{"files": [f"targets/{job['job_name']}.json"], "refresh_interval": "1s"}]
        self._jobs = [job["job_name"] for job in config["scrape_configs"]]
        (self._scratch / "targets").mkdir()
        self.watch(targets)
        (self._scratch / "prometheus.yml").write_text(yaml.safe_dump(config))
        self._address = f"{HOST}:{free_port()}"
        flags = [
            f"--config.file={self._scratch / 'prometheus.yml'}", f"--storage.tsdb.path={self._scratch / 'data'}",
            f"--web.listen-address={self._address}", "--log.level=warn",
        ]  # fmt: skip
        self.process = Process("prometheus", ["prometheus", *flags], log_dir=scratch, env={"PATH": "/usr/bin:/bin"})
        self.process.wait_until(self._is_up, START_S)

    def _is_up(self) -> bool:
        try:
            return bool(self._get("/api/v1/query", query="1"))
        except OSError:
            return False

    def watch(self, targets: Mapping[str, list[str]]) -> None:
        """Scrape these from now on, by job; jobs not named as before."""
        assert set(targets) <= set(self._jobs), targets
        for job, addresses in targets.items():
            new = self._scratch / f"{job}.new"
            new.write_text(json.dumps([{"targets": addresses}]))
            new.replace(self._scratch / "targets" / f"{job}.json")

    def query(self, expr: str) -> list[Sample]:
        result = self._get("/api/v1/query", query=expr)["result"]
        return [Sample(each["metric"], float(each["value"][1])) for each in result]

    def firing(self) -> dict[str, dict[str, Any]]:
        """The alerts that fire: one of each name, with its labels and annotations."""
        alerts = self._get("/api/v1/alerts")["alerts"]
        return {alert["labels"]["alertname"]: alert for alert in alerts if alert["state"] == "firing"}

    def await_firing(self, *names: str, deadline_s: float = FIRES_S) -> None:
        """Until all of these fire; tells each."""
        began, told = time.monotonic(), set[str]()
        while missing := set(names) - told:
            for name, alert in self.firing().items():
                if name in missing:
                    told.add(name)
                    print(f"{name:25} after {time.monotonic() - began:4.1f} s: {alert['annotations']['summary']}")
            assert time.monotonic() - began < deadline_s, f"{missing} do not fire, only {set(self.firing())}"
            time.sleep(0.1)

    def await_value(self, expr: str, wanted: Callable[[list[Sample]], bool], deadline_s: float = FIRES_S) -> None:
        began = time.monotonic()
        while not wanted(found := self.query(expr)):
            assert time.monotonic() - began < deadline_s, f"{expr} is {found}"
            time.sleep(0.1)

    def _get(self, path: str, **asked: str) -> Any:
        with urlopen(f"http://{self._address}{path}?{urlencode(asked)}", timeout=10) as response:
            return json.load(response)["data"]


def hurried(document: dict[str, Any]) -> dict[str, Any]:
    for group in document["groups"]:
        for rule in group["rules"]:
            if "for" in rule:
                rule["for"] = "1s"
    return document
