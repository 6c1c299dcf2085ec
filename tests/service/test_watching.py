"""What watches the service: dashboard and alerts ask for what /metrics tells; the health check finds its worker."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from tests.installation import Installation, encode, eventually, noise_bursts, retrieve

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
SELECTOR = re.compile(r"\b((?:phalar|process)_[a-z0-9_]+)(?:\{([^}]*)\})?")
EQUAL = re.compile(r'(\w+)="([^"]*)"')
ANY_VALUE = {"status", "route"}  # which of them there are depends on what was asked so far
FROM_PROMETHEUS = {"job", "instance"}


def expressions() -> Iterator[tuple[str, str]]:
    """Every expression of the dashboard and the alerts, with the title that it stands under."""
    board = json.loads((DEPLOY / "grafana" / "dashboards" / "phalar.json").read_text(encoding="utf-8"))
    for panel in board["panels"]:
        for target in panel.get("targets", []):
            yield panel["title"], target["expr"]
    rules = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text(encoding="utf-8"))
    for group in rules["groups"]:
        for rule in group["rules"]:
            yield rule["alert"], rule["expr"]


@pytest.fixture
def told(client: httpx.Client) -> dict[str, list[dict[str, str]]]:
    """The labels of every series of /metrics by its name, once a worker has reported and a query was answered."""
    retrieve(client, encode(noise_bursts(0)), limit=1)

    def families() -> list[Metric]:
        found = list(text_string_to_metric_families(client.get("/metrics").text))
        return found if any(sample.name == "phalar_worker" for family in found for sample in family.samples) else []

    series: dict[str, list[dict[str, str]]] = {}
    for family in eventually(families):
        for sample in family.samples:
            series.setdefault(sample.name, []).append(sample.labels)
    return series


def test_dashboard_and_alerts_ask_for_what_metrics_tells(told: dict[str, list[dict[str, str]]]) -> None:
    asked = list(expressions())
    assert len(asked) > 40
    for title, expression in asked:
        selectors = SELECTOR.findall(expression)
        assert selectors or re.match(r"(absent\()?(up|ALERTS)\b", expression) or "up{" in expression, title
        for name, labels in selectors:
            assert name in told, f"{title}: there is no {name}"
            for label, value in EQUAL.findall(labels):
                if label in FROM_PROMETHEUS:
                    continue
                held: set[Any] = {series.get(label) for series in told[name]}
                assert held != {None}, f"{title}: {name} has no label {label}"
                assert label in ANY_VALUE or value in held, f"{title}: no {name} has {label}={value}"


def test_the_dashboard_is_one_that_grafana_can_load() -> None:
    board = json.loads((DEPLOY / "grafana" / "dashboards" / "phalar.json").read_text(encoding="utf-8"))
    source = yaml.safe_load((DEPLOY / "grafana/provisioning/datasources/prometheus.yml").read_text(encoding="utf-8"))
    uid = source["datasources"][0]["uid"]
    panels = board["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        assert all(target["datasource"]["uid"] == uid for target in panel.get("targets", []))
    cells = [
        (x, y)
        for panel in panels
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(cells) == len(set(cells)), "panels lie on each other"


def test_the_workers_health_check_knows_who_beats(installation: Installation, client: httpx.Client) -> None:
    eventually(lambda: "phalar_worker{" in client.get("/metrics").text)
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
    script = compose["services"]["worker"]["healthcheck"]["test"][-1]
    here = os.environ | {"PHALAR_DATA": str(installation.folder / "data"), **installation.settings}

    def check(**changed: str) -> int:
        return subprocess.run([sys.executable, "-c", script], env=here | changed, timeout=120).returncode

    assert check() == 0
    assert check(PHALAR_REDIS_PREFIX="another") == 1
