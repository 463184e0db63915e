"""What the dashboard and the alerts ask for is there, and each alert has its runbook."""

import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest

import booking

ROOT = Path(booking.__file__).parent.parent
OPERATIONS = ROOT / "docs" / "operations"


def metrics_in(text: str) -> set[str]:
    return set(re.findall(r"\btaxi_[a-z_]+", text))


def exposed(client: httpx.Client) -> set[str]:
    """The name of every series that the service has to tell."""
    client.get("/drivers")
    text = client.get("/metrics").text
    names = set()
    for name, kind in re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE):
        parts = ("_bucket", "_sum", "_count") if kind == "histogram" else ("",)
        names |= {name + part for part in parts}
    return names


def queries() -> list[str]:
    dashboard: dict[str, Any] = json.loads((OPERATIONS / "grafana.json").read_text())
    return [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]


@pytest.mark.parametrize("file", ["grafana.json", "alerts.yml"])
def test_every_metric_that_is_asked_for_is_there(client: httpx.Client, file: str) -> None:
    client.get("/nowhere")
    text = "\n".join(queries()) if file == "grafana.json" else (OPERATIONS / file).read_text()
    asked = metrics_in(text)
    assert len(asked) > 5
    # Litestar's count of errors is there from the first one on.
    assert asked - exposed(client) <= {"taxi_requests_error_total"}
    assert metrics_in("rate(taxi_bookings_made_total[5m])") - exposed(client), "the control"


def test_every_panel_has_queries_and_a_place_of_its_own() -> None:
    panels = json.loads((OPERATIONS / "grafana.json").read_text())["panels"]
    places = {(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels}
    assert len(places) == len({panel["id"] for panel in panels}) == len(panels) > 8
    assert all(panel["targets"] for panel in panels)


def test_every_alert_has_its_part_of_the_runbook() -> None:
    text = (OPERATIONS / "alerts.yml").read_text()
    alerts = re.findall(r"- alert: (\w+)", text)
    runbooks = re.findall(r"runbook: (\S+)#(\w+)", text)
    assert len(alerts) == len(runbooks) > 5
    for alert, (file, anchor) in zip(alerts, runbooks, strict=True):
        assert anchor == alert.lower()
        assert f"### {alert}\n" in (ROOT / file).read_text()
