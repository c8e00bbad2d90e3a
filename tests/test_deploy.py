"""What is in deploy/ fits the server: every metric it asks for is one that is exported, and nothing
opens a server to the network unasked."""

import configparser
import json
import re
import shutil
import subprocess
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.patience import PATIENCE

from quire.engine.config import EngineConfig
from quire.engine.loop.stats import EngineStats
from quire.engine.loop.step_times import StepTimes
from quire.service.admission.admission import Admission, Policy
from quire.service.settings import ServiceConfig, Settings, read_settings
from quire.service.telemetry.counters import Ledger
from quire.service.telemetry.metrics import QuireCollector, Sources
from quire.service.telemetry.protection_metrics import ProtectionCollector

DEPLOY = Path(__file__).resolve().parent.parent / "deploy"


@pytest.fixture(scope="module")
def exported() -> set[str]:
    """The names as Prometheus stores them."""
    names: set[str] = set()
    ledger = Ledger()
    ledger.rpcs["Generate", "OK"] += 1
    ledger.refusals["QUEUE_FULL"] += 1
    sources = Sources(ledger, EngineStats, StepTimes, lambda: False)
    admission = Admission(Policy(slots=1))
    for collector in (
        QuireCollector(sources),
        ProtectionCollector(admission, ledger, lambda: 1.0),
    ):
        for metric in collector.collect():
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
    assert int(unit["Service"]["TimeoutStopSec"]) > ServiceConfig().drain_seconds
    assert unit["Service"]["Restart"] == "on-failure"


def unit_lines(name: str) -> list[str]:
    """The values of a setting of the unit, which may come several times."""
    text = (DEPLOY / "quire.service").read_text().replace("\\\n", " ")
    return [line.removeprefix(f"{name}=") for line in text.splitlines() if line.startswith(name)]


def flags_of(words: list[str]) -> dict[str, str]:
    """`--name value` pairs of a command line, by the options' names. Every one must be known."""
    known = {f.name for section in (ServiceConfig, EngineConfig) for f in fields(section)}
    given = {}
    for flag, value in zip(words[::2], words[1::2], strict=True):
        name = flag.removeprefix("--").replace("-", "_")
        assert flag.startswith("--") and name in known | {"config"}, flag
        given[name] = value
    return given


def test_systemd_hands_over_what_root_alone_may_read(tmp_path: Path) -> None:
    (command,) = unit_lines("ExecStart")
    program, verb, *words = command.split()
    assert (program, verb) == ("/opt/quire/.venv/bin/quire", "serve")
    flags = flags_of(words)
    sources = dict(line.split(":") for line in unit_lines("LoadCredential"))
    assert {f"%d/{name}" for name in sources} == set(flags.values())
    assert all(path == f"/etc/quire/{name}" for name, path in sources.items())
    assert unit_lines("DynamicUser") == ["yes"]
    handed = {name: value.replace("%d", str(tmp_path)) for name, value in flags.items()}
    file = Path(handed.pop("config"))
    file.write_text((DEPLOY / "quire.toml").read_text())
    service = read_settings(handed, {}, file).service
    assert service.tls_cert and service.tls_key and service.api_keys and not service.insecure
    assert int(unit_lines("TimeoutStopSec")[0]) > service.drain_seconds + 5


# ------------------------------------------------------------ Prometheus


def test_prometheus_scrapes_under_the_name_that_the_alerts_ask_for(mounted: Settings) -> None:
    configuration = yaml.safe_load((DEPLOY / "prometheus.yaml").read_text())
    (job,) = configuration["scrape_configs"]
    assert f'job="{job["job_name"]}"' in (DEPLOY / "alerts.yaml").read_text()
    assert all((DEPLOY / name).exists() for name in configuration["rule_files"])
    (targets,) = job["dns_sd_configs"]
    assert targets["port"] == mounted.service.metrics_port
    assert targets["names"] == [manifest("service")["metadata"]["name"]]
    assert manifest("service")["spec"]["clusterIP"] == "None"
    assert (job["scheme"], mounted.service.tls_cert is not None) == ("https", True)
    assert job["tls_config"]["ca_file"] and "insecure_skip_verify" not in job["tls_config"]


# ------------------------------------------------------------ the page


def commands_below(heading: str) -> list[str]:
    """The commands of the first block below a heading of docs/deploy.md, each as one line."""
    page = (DEPLOY.parent / "docs" / "deploy.md").read_text()
    block = page.split(f"\n## {heading}\n")[1].split("\n```\n")[1]
    return [re.sub(r"\s+", " ", line) for line in block.replace("\\\n", " ").splitlines()]


@pytest.mark.parametrize("way", ["docker run", "systemctl", "kubectl apply"])
def test_each_way_is_three_commands_with_tls_and_keys(way: str) -> None:
    commands = commands_below(way)
    assert len(commands) == 3
    assert sum(way in command for command in commands) == 1
    assert all(re.search(rf"\b{word}\b", " ".join(commands)) for word in ("tls.key", "keys"))
    for word in " ".join(commands).split():
        assert not word.startswith("deploy/") or (DEPLOY.parent / word).exists(), word


def test_the_docker_command_is_one_that_the_server_takes() -> None:
    image, command = commands_below("docker run")[0].split()[-2], commands_below("docker run")[2]
    before, after = command.split(f" {image} ")
    flags = flags_of(after.split())
    assert {"tls_cert", "tls_key", "api_keys", "host"} <= set(flags)
    service = ServiceConfig(
        **{name: value for name, value in flags.items() if name != "model"}  # type: ignore[arg-type]
    )
    assert not service.insecure
    assert int(before.split("--stop-timeout ")[1].split()[0]) > service.drain_seconds + 5
    for path in (service.tls_cert, service.tls_key, service.api_keys):
        assert str(path).startswith("/etc/quire/") and "-v /etc/quire:/etc/quire:ro" in before
    user = re.search(r"-o (\d+) ", commands_below("docker run")[1])
    assert user and f"USER {user[1]}" in (DEPLOY / "Dockerfile").read_text()


def test_what_the_unit_reads_is_what_the_page_installs() -> None:
    installed = commands_below("systemctl")[0].split()
    names = {line.split(":")[0] for line in unit_lines("LoadCredential")}
    assert names <= {Path(word).name for word in installed}
    assert "600" in installed and installed[-1] == "/etc/quire"


# ------------------------------------------------------------ Kubernetes


def manifest(name: str) -> Any:
    return yaml.safe_load((DEPLOY / "kubernetes" / "base" / f"{name}.yaml").read_text())


@pytest.fixture
def mounted(tmp_path: Path) -> Settings:
    """What the server makes of the file that the manifests mount."""
    file = tmp_path / "quire.toml"
    file.write_text(manifest("configmap")["data"]["quire.toml"])
    return read_settings({}, {}, file)


def test_the_probes_ask_a_port_without_tls_that_is_opened_for_them(mounted: Settings) -> None:
    pod = manifest("deployment")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    readiness, liveness = container["readinessProbe"]["grpc"], container["livenessProbe"]["grpc"]
    assert readiness["service"] == "quire.v1.InferenceService"
    assert liveness["service"] == "liveness"
    assert mounted.service.health_host == "0.0.0.0"
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert readiness["port"] == liveness["port"] == mounted.service.health_port == ports["health"]
    assert (ports["grpc"], ports["metrics"]) == (mounted.service.port, mounted.service.metrics_port)


def test_the_pod_may_take_longer_to_end_than_the_drain(mounted: Settings) -> None:
    pod = manifest("deployment")["spec"]["template"]["spec"]
    command = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    assert command[0] == "sleep"
    ending = int(command[1]) + mounted.service.drain_seconds + 12  # the engine, then the port
    assert ending < pod["terminationGracePeriodSeconds"]


def test_every_file_that_the_server_reads_is_mounted_from_a_secret(mounted: Settings) -> None:
    pod = manifest("deployment")["spec"]["template"]["spec"]
    secrets = {volume["name"] for volume in pod["volumes"] if "secret" in volume}
    places = {
        mount["mountPath"]
        for mount in pod["containers"][0]["volumeMounts"]
        if mount["name"] in secrets and mount["readOnly"]
    }
    service = mounted.service
    for path in (service.tls_cert, service.tls_key, service.api_keys):
        assert path is not None and str(Path(path).parent) in places
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert not service.insecure


def test_one_replica_stays_when_a_node_goes() -> None:
    deployment, budget = manifest("deployment"), manifest("poddisruptionbudget")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert budget["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert 0 < budget["spec"]["minAvailable"] < deployment["spec"]["replicas"]
    assert manifest("service")["spec"]["selector"].items() <= labels.items()


# ------------------------------------------------------------ overlays


KUBECTL = shutil.which("kubectl")


OVERLAYS = pytest.mark.parametrize(
    "name", ["cpu", "gpu", "two-gpus"], ids=["pocket", "cards", "pairs"]
)


def overlay(name: str) -> list[Any]:
    """What `kubectl apply -k` would send, without a cluster."""
    if KUBECTL is None:
        pytest.skip("no kubectl command here")
    where = DEPLOY / "kubernetes" / "overlays" / name
    rendered = subprocess.run(
        [KUBECTL, "kustomize", where], capture_output=True, text=True, timeout=PATIENCE, check=True
    )
    return list(yaml.safe_load_all(rendered.stdout))


def of_kind(documents: list[Any], kind: str) -> Any:
    (found,) = (document for document in documents if document["kind"] == kind)
    return found


@OVERLAYS
def test_an_overlay_leaves_the_number_of_replicas_to_its_autoscaler(name: str) -> None:
    documents = overlay(name)
    deployment = of_kind(documents, "Deployment")
    assert "replicas" not in deployment["spec"]
    budget = of_kind(documents, "PodDisruptionBudget")["spec"]["minAvailable"]
    if name == "cpu":
        scaler = of_kind(documents, "HorizontalPodAutoscaler")["spec"]
        least, most = scaler["minReplicas"], scaler["maxReplicas"]
    else:
        scaler = of_kind(documents, "ScaledObject")["spec"]
        least, most = scaler["minReplicaCount"], scaler["maxReplicaCount"]
    assert scaler["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    assert budget < least < most


@OVERLAYS
def test_an_overlay_mounts_what_it_reads(name: str, tmp_path: Path) -> None:
    documents = overlay(name)
    file = tmp_path / "quire.toml"
    file.write_text(of_kind(documents, "ConfigMap")["data"]["quire.toml"])
    settings = read_settings({}, {}, file)
    pod = of_kind(documents, "Deployment")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert {m["name"] for m in container["volumeMounts"]} == {v["name"] for v in pod["volumes"]}
    places = [mount["mountPath"] for mount in container["volumeMounts"]]
    own = settings.engine.model == "pocket"
    assert own == (name == "cpu") == ("/models" not in places)
    assert ("nvidia.com/gpu" in container["resources"]["limits"]) == (name != "cpu")
    assert not settings.service.insecure
    port = settings.service.health_port
    assert container["readinessProbe"]["grpc"]["port"] == port


def test_a_pair_of_cards_is_two_ranks_that_have_memory_to_share() -> None:
    pod = of_kind(overlay("two-gpus"), "Deployment")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    given = {one["name"]: one["value"] for one in container["env"]}
    engine = read_settings({}, given, None).engine
    limits = container["resources"]["limits"]
    assert limits["nvidia.com/gpu"] == engine.tensor_parallel_size == 2
    (place,) = (m["name"] for m in container["volumeMounts"] if m["mountPath"] == "/dev/shm")
    (volume,) = (one["emptyDir"] for one in pod["volumes"] if one["name"] == place)
    assert volume["medium"] == "Memory"
    sizes = [int(size.removesuffix("Gi")) for size in (volume["sizeLimit"], limits["memory"])]
    assert sizes[0] < sizes[1]


def test_what_scales_and_scrapes_asks_for_what_is_exported(exported: set[str]) -> None:
    adapter = yaml.safe_load((DEPLOY / "prometheus-adapter.yaml").read_text())
    (rule,) = adapter["rules"]["custom"]
    documents = overlay("gpu")
    (trigger,) = of_kind(documents, "ScaledObject")["spec"]["triggers"]
    for query in (rule["seriesQuery"], rule["metricsQuery"], trigger["metadata"]["query"]):
        names = set(re.findall(r"quire_\w+", query))
        assert names and names <= exported
    (metric,) = of_kind(overlay("cpu"), "HorizontalPodAutoscaler")["spec"]["metrics"]
    assert metric["pods"]["metric"]["name"] == rule["name"]["as"]
    monitor, service = of_kind(documents, "ServiceMonitor"), of_kind(documents, "Service")
    assert (
        monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    )
    (endpoint,) = monitor["spec"]["endpoints"]
    assert endpoint["port"] in {port["name"] for port in service["spec"]["ports"]}


@OVERLAYS
def test_manifests_are_what_kubernetes_takes(name: str) -> None:
    """Of the kinds that are Kubernetes' own: of the others there is no schema here."""
    validate = pytest.importorskip("kubernetes_validate").validate
    for document in overlay(name):
        if document["kind"] not in ("ScaledObject", "ServiceMonitor"):
            validate(document, "1.29", strict=True)


def test_the_pages_for_operators_know_every_alert_and_reason_and_name_options_that_exist() -> None:
    page, limits = (
        (DEPLOY.parent / "docs" / name).read_text() for name in ("operations.md", "limits.md")
    )
    rules = (DEPLOY / "alerts.yaml").read_text()
    for name in re.findall(r"alert: (\w+)", rules):
        assert name in page, name
    reasons = re.findall(
        r'reason="([A-Z_]+)"', (DEPLOY.parent / "service" / "errors.py").read_text()
    )
    for reason in reasons:
        assert reason in page, reason
    known = {f.name for section in (ServiceConfig, EngineConfig) for f in fields(section)}
    for option in re.findall(r"`([a-z]+(?:_[a-z]+)+)`", page + limits):
        assert option in known or option.startswith("quire_"), option
