"""What is in deploy/ fits the server: every metric it asks for is one that is exported, and nothing
opens a server to the network unasked."""

import configparser
import json
import re
from pathlib import Path

import pytest

from quire.engine.stats import EngineStats
from quire.service.ledger import Ledger
from quire.service.metrics import QuireCollector, Sources

DEPLOY = Path(__file__).resolve().parent.parent / "deploy"


@pytest.fixture(scope="module")
def exported() -> set[str]:
    """The names as Prometheus stores them."""
    names: set[str] = set()
    ledger = Ledger()
    ledger.rpcs["Generate", "OK"] += 1
    for metric in QuireCollector(Sources(ledger, EngineStats)).collect():
        names |= {sample.name for sample in metric.samples}
    return names


def asked(text: str) -> set[str]:
    return set(re.findall(r"\bquire_[a-z0-9_]+", text))


def test_the_alerts_ask_for_metrics_that_exist(exported: set[str]) -> None:
    rules = (DEPLOY / "alerts.yaml").read_text()
    expressions = " ".join(re.findall(r"expr:(.*?)\n\s+(?:for|labels):", rules, flags=re.DOTALL))
    assert len(asked(expressions)) >= 6
    assert asked(expressions) <= exported, asked(expressions) - exported
    names = re.findall(r"alert: (\w+)", rules)
    assert len(names) == len(set(names)) == rules.count("summary:")


def test_the_dashboard_asks_for_metrics_that_exist(exported: set[str]) -> None:
    board = json.loads((DEPLOY / "grafana-dashboard.json").read_text())
    for panel in board["panels"]:
        for target in panel["targets"]:
            names = asked(target["expr"])
            assert names and names <= exported, (panel["title"], names - exported)
    queries = " ".join(v["query"] for v in board["templating"]["list"])
    assert asked(queries) <= exported
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])


def test_nothing_here_opens_a_server_unasked() -> None:
    for path in DEPLOY.rglob("*"):
        if path.is_file():
            lines = [line.split("#")[0] for line in path.read_text().splitlines()]
            assert "--insecure" not in " ".join(lines), path
            assert not re.search(r"insecure\s*[=:]\s*true", " ".join(lines)), path


def test_the_container_runs_as_nobody_in_particular_and_says_how_it_is() -> None:
    lines = (DEPLOY / "Dockerfile").read_text().splitlines()
    user = [line.split()[1] for line in lines if line.startswith("USER ")][-1]
    assert user not in ("0", "root")
    assert any(line.startswith("HEALTHCHECK") and '"health"' in line for line in lines)
    for line in lines:
        if line.startswith("COPY "):
            for source in line.split()[1:-1]:
                assert (DEPLOY.parent / source).exists(), source


def test_systemd_waits_longer_than_the_drain() -> None:
    unit = configparser.ConfigParser(strict=False)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(DEPLOY / "quire.service")
    from quire.service.settings import ServiceConfig

    assert int(unit["Service"]["TimeoutStopSec"]) > ServiceConfig().drain_seconds
    assert unit["Service"]["Restart"] == "on-failure"
