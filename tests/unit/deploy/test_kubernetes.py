"""The manifests: built by kubectl's own kustomize, valid by the API's schemas, true to what services can be told."""

import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from larder.vllm.settings import parse
from pydantic import ByteSize, TypeAdapter

from deploy.kubernetes.components.monitoring import build
from services.common.settings import ServiceSettings, load
from services.master.config import MasterSettings
from services.proxy.config import ProxySettings
from services.storage_node.cli import Settings as NodeSettings

ROOT = Path(__file__).resolve().parents[3]
PLACE = ROOT / "deploy/kubernetes"
KUBECTL = Path(sys.executable).with_name("kubectl")
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
BUILDS = ("base", "overlays/one-machine", "overlays/vllm", "monitored")
SERVICES: dict[str, type[ServiceSettings]] = {
    "master": MasterSettings,
    "storage-node": NodeSettings,
    "proxy": ProxySettings,
}
Document = dict[str, Any]

# Of the operator's objects there is no schema to be had without a network: these hold the fields that are used here,
# and no others. So they find a typo; whether the operator takes them, they do not know.
TEXT = {"type": "string"}
LABELS = {"type": "object", "additionalProperties": TEXT}
DURATION = {"type": "string", "pattern": r"^[0-9]+(ms|[smhdwy])$"}


def exactly(required: list[str], **properties: Any) -> Document:
    return {"type": "object", "required": required, "properties": properties, "additionalProperties": False}


RULE = exactly(["expr"], alert=TEXT, record=TEXT, expr=TEXT, labels=LABELS, annotations=LABELS, **{"for": DURATION})
GROUP = exactly(["name", "rules"], name=TEXT, interval=DURATION, rules={"type": "array", "items": RULE})
SELECTOR = exactly([], matchLabels=LABELS, matchExpressions={"type": "array"})
ENDPOINT = exactly(["port"], port=TEXT, path=TEXT, interval=DURATION)
OPERATORS = {
    "PrometheusRule": exactly(["groups"], groups={"type": "array", "minItems": 1, "items": GROUP}),
    "ServiceMonitor": exactly(
        ["selector", "endpoints"], selector=SELECTOR, endpoints={"type": "array", "minItems": 1, "items": ENDPOINT}
    ),
}


@cache
def built(name: str) -> tuple[Document, ...]:
    """What `kubectl apply -k` would send."""
    with tempfile.TemporaryDirectory() as scratch:
        place = PLACE / name
        if name == "monitored":  # a user's own overlay, with the component that is optional
            place = Path(scratch)
            parts = {"resources": "overlays/vllm", "components": "components/monitoring"}
            own = {key: [os.path.relpath(PLACE / part, place)] for key, part in parts.items()}
            (place / "kustomization.yaml").write_text(yaml.safe_dump({"namespace": "larder"} | own))
        argv = [str(KUBECTL), "kustomize", str(place)]
        run = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 0, run.stderr
    assert not run.stderr, run.stderr
    return tuple(yaml.safe_load_all(run.stdout))


def of_kind(name: str, *kinds: str) -> dict[str, Document]:
    return {each["metadata"]["name"]: each for each in built(name) if each["kind"] in kinds}


def pods(name: str) -> dict[str, Document]:
    """The pods' templates, by the name of what makes them."""
    return {each: made["spec"]["template"] for each, made in of_kind(name, "Deployment", "StatefulSet").items()}


def container(template: Document) -> Document:
    (only,) = template["spec"]["containers"]
    return dict(only)


def picks(selector: Document, template: Document) -> bool:
    labels = template["metadata"]["labels"]
    return selector.get("matchLabels", selector).items() <= labels.items()


# -- as the API has it


@pytest.fixture(scope="module")
def _read_once() -> Iterator[None]:
    """Each schema, and what all of them refer to, which is large."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kubernetes_validate.utils, "schema_contents", cache(kubernetes_validate.utils.schema_contents))
        yield


@pytest.mark.usefixtures("_read_once")
@pytest.mark.parametrize("version", ["1.30", "1.37"])
@pytest.mark.parametrize("name", ["monitored", "overlays/one-machine"])  # all there is
def test_every_document_is_valid(name: str, version: str) -> None:
    for document in built(name):
        if (spec := OPERATORS.get(document["kind"])) is None:
            kubernetes_validate.validate(document, version, strict=True)
            continue
        assert document["apiVersion"] == "monitoring.coreos.com/v1"
        jsonschema.validate(document["spec"], spec)


def test_a_document_that_is_not_valid_would_be_found() -> None:
    wrong = json.loads(json.dumps(of_kind("base", "StatefulSet")["larder-storage-node"]))
    wrong["spec"]["template"]["spec"]["terminationGracePeriod"] = 1
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, "1.37", strict=True)


@pytest.mark.parametrize("name", BUILDS)
def test_everything_is_in_one_namespace_and_no_name_comes_twice(name: str) -> None:
    inside = [each for each in built(name) if each["kind"] != "Namespace"]
    assert {each["metadata"]["namespace"] for each in inside} == {"larder"}
    names = [(each["kind"], each["metadata"]["name"]) for each in built(name)]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("name", BUILDS)
def test_every_selector_picks_the_pods_it_is_for_and_every_port_is_one_of_theirs(name: str) -> None:
    for made in of_kind(name, "Deployment", "StatefulSet").values():
        assert picks(made["spec"]["selector"], made["spec"]["template"])
    for service, made in of_kind(name, "Service").items():
        (of,) = [owner for owner, template in pods(name).items() if picks(made["spec"]["selector"], template)]
        assert of == service
        ports = {port["name"]: port["containerPort"] for port in container(pods(name)[of])["ports"]}
        assert {port["targetPort"]: port["port"] for port in made["spec"]["ports"]}.items() <= ports.items()
        assert made["metadata"]["labels"] == made["spec"]["selector"]  # monitors pick services by them
    for budget, made in of_kind(name, "PodDisruptionBudget").items():
        assert [owner for owner, template in pods(name).items() if picks(made["spec"]["selector"], template)] == [
            budget
        ]
    assert of_kind(name, "StatefulSet")["larder-storage-node"]["spec"]["serviceName"] in of_kind(name, "Service")


# -- as a cautious operator wants it


@pytest.mark.parametrize("name", BUILDS)
def test_every_pod_is_confined(name: str) -> None:
    for template in pods(name).values():
        spec, only = template["spec"], container(template)
        assert spec["enableServiceLinks"] is False
        assert spec["automountServiceAccountToken"] is False
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] == 65532
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        confined = {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert only["securityContext"] == confined
        assert {"cpu", "memory"} <= only["resources"]["requests"].keys()
        assert only["resources"]["limits"]["memory"]
        hosts = [volume["hostPath"]["path"] for volume in spec["volumes"] if "hostPath" in volume]
        assert set(hosts) <= {"/dev/shm"}  # noqa: S108


@pytest.mark.parametrize("name", BUILDS)
def test_every_pod_is_watched_and_given_time_to_end(name: str) -> None:
    for owner, template in pods(name).items():
        only = container(template)
        ports = {port["name"] for port in only["ports"]}
        paths = {}
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            asked = only[probe]["httpGet"]
            assert asked["port"] in ports
            paths[probe] = asked["path"]
        is_ours = only["image"] == f"larder:{VERSION}"
        assert paths["livenessProbe"] == paths["startupProbe"] == "/health"
        assert paths["readinessProbe"] == ("/ready" if is_ours else "/health")  # vLLM has no other
        before = " ".join(only.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", []))
        waits = sum(map(int, re.findall(r"(?:^sleep |--timeout )(\d+)", before)))
        then = {"larder-proxy": 25, "larder-storage-node": 20, "larder-master": 20}.get(owner, 300)
        assert template["spec"]["terminationGracePeriodSeconds"] >= waits + then


def entries(policy: Document) -> list[Document]:
    assert policy["spec"]["policyTypes"] == ["Ingress"]
    return list(policy["spec"]["ingress"])


def is_port(rule: Document, template: Document, port: int) -> bool:
    named = {each["name"]: each["containerPort"] for each in container(template)["ports"]}
    first = [(named.get(each["port"], each["port"]), each.get("endPort")) for each in rule["ports"]]
    return any(isinstance(least, int) and least <= port <= (most or least) for least, most in first)


def is_from(rule: Document, caller: Document | None) -> bool:
    if "from" not in rule:
        return True
    return caller is not None and any(
        picks(each["podSelector"], caller) for each in rule["from"] if "podSelector" in each
    )


def test_the_masters_port_and_the_data_plane_are_closed_to_all_but_nodes_and_engines() -> None:
    policies = of_kind("monitored", "NetworkPolicy").values()

    def may_enter(owner: str, caller: Document | None, port: int) -> bool:
        """Whether a pod of this namespace, or None for one of another namespace, gets through to that port."""
        template = pods("monitored")[owner]
        rules = [rule for each in policies if picks(each["spec"]["podSelector"], template) for rule in entries(each)]
        assert rules, f"{owner} is open"
        return any(is_port(rule, template, port) and is_from(rule, caller) for rule in rules)

    templates = pods("monitored")
    stranger = {"metadata": {"labels": {"app": "web"}}}
    inside = {"larder-storage-node", "larder-prefill", "larder-decode"}
    for owner, port in (("larder-master", 50001), ("larder-storage-node", 18000), ("larder-storage-node", 18015)):
        callers = {each for each, template in templates.items() if may_enter(owner, template, port)}
        assert callers == inside
        assert not may_enter(owner, stranger, port)
        assert not may_enter(owner, None, port)
    for owner, port in (("larder-prefill", 8100), ("larder-decode", 8200)):
        assert {each for each, template in templates.items() if may_enter(owner, template, port)} == {"larder-proxy"}
        assert not any(may_enter(owner, template, 15000) for template in templates.values())
        bootstrap = ProxySettings.model_fields["mooncake_bootstrap_port"].default
        assert may_enter(owner, templates["larder-proxy"], bootstrap)  # to be refused at once
    assert may_enter("larder-proxy", stranger, 8000)
    assert may_enter("larder-proxy", None, 8000)


def test_nodes_are_on_distinct_hosts_and_share_the_hosts_memory_with_engines() -> None:
    node = pods("overlays/vllm")["larder-storage-node"]["spec"]
    (apart,) = node["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert apart["topologyKey"] == "kubernetes.io/hostname"
    assert picks(apart["labelSelector"], pods("overlays/vllm")["larder-storage-node"])
    for name in ("larder-storage-node", "larder-prefill", "larder-decode"):
        template = pods("overlays/vllm")[name]
        assert {"name": "pools", "mountPath": "/dev/shm"} in container(template)["volumeMounts"]  # noqa: S108
        assert template["spec"]["securityContext"]["runAsUser"] == node["securityContext"]["runAsUser"]


def test_on_one_small_machine_a_pool_takes_no_more_than_its_pod_may(monkeypatch: pytest.MonkeyPatch) -> None:
    template = pods("overlays/one-machine")["larder-storage-node"]
    (pools,) = [volume for volume in template["spec"]["volumes"] if volume["name"] == "pools"]
    assert pools.keys() == {"name", "emptyDir"}  # the "host" of kind has 64 MiB of /dev/shm
    assert pools["emptyDir"]["medium"] == "Memory"
    size = TypeAdapter(ByteSize).validate_python
    dram = told(template, "storage-node", monkeypatch).dram
    limit = container(template)["resources"]["limits"]["memory"]
    assert dram < size(f"{pools['emptyDir']['sizeLimit']}B") < size(f"{limit}B")


def test_a_host_can_be_drained_of_what_keeps_nothing_and_is_not_ready() -> None:
    budgets = of_kind("overlays/vllm", "PodDisruptionBudget")
    at_any_time = {name for name, made in budgets.items() if "unhealthyPodEvictionPolicy" in made["spec"]}
    assert at_any_time == {"larder-proxy", "larder-prefill", "larder-decode"}
    assert budgets.keys() - at_any_time == {"larder-storage-node"}


# -- as the services have it


def told(template: Document, prog: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The service's settings, as its own loader reads them from the container's arguments and variables."""
    for variable in [each for each in os.environ if each.startswith("LARDER_")]:
        monkeypatch.delenv(variable)
    only = container(template)
    fields = {"metadata.name": "larder-storage-node-0", "metadata.namespace": "larder", "status.podIP": "10.1.2.3"}
    known: dict[str, str] = {}
    for variable in only.get("env", []):
        field = variable.get("valueFrom", {}).get("fieldRef", {}).get("fieldPath")
        value = variable.get("value") if field is None else fields[field]
        if value is not None:  # Kubernetes puts in what stands before
            known[variable["name"]] = re.sub(r"\$\((\w+)\)", lambda found: known[found[1]], value)
    for name, value in known.items():
        if name.startswith("LARDER_"):
            monkeypatch.setenv(name, value)
    command, *argv = only["args"]
    assert command == prog
    return load(SERVICES[prog], prog=prog, argv=argv)


@pytest.mark.parametrize("name", BUILDS)
def test_the_services_understand_what_they_are_told(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    templates, services = pods(name), of_kind(name, "Service")
    master = told(templates["larder-master"], "master", monkeypatch)
    assert master.host == "0.0.0.0"  # noqa: S104
    assert {master.port, master.metrics_port} == {port["port"] for port in services["larder-master"]["spec"]["ports"]}
    node = told(templates["larder-storage-node"], "storage-node", monkeypatch)
    assert node.master == (f"larder-master:{master.port}",)
    assert node.node_id == "larder.larder-storage-node-0"  # its pool's file stands beside those of other namespaces
    assert node.metrics_port == services["larder-storage-node"]["spec"]["ports"][0]["port"]
    open_ports = of_kind(name, "NetworkPolicy")["larder-storage-node"]["spec"]["ingress"][0]["ports"][0]
    assert node.engine_ports == f"{open_ports['port']}-{open_ports['endPort']}"
    memory = container(templates["larder-storage-node"])["resources"]["limits"]["memory"]
    assert TypeAdapter(ByteSize).validate_python(f"{memory}B") >= node.dram + (512 << 20)
    proxy = told(templates["larder-proxy"], "proxy", monkeypatch)
    assert proxy.port == services["larder-proxy"]["spec"]["ports"][0]["port"]
    for source in proxy.discover:
        host, port = source.rpartition("dns://")[2].split(":")
        if host in services:
            assert services[host]["spec"]["clusterIP"] == "None"
            assert services[host]["spec"]["ports"][0]["port"] == int(port)
            assert source.startswith(host.removeprefix("larder-"))
    assert ("larder-decode" in services) == (name in ("overlays/vllm", "monitored"))


@pytest.mark.parametrize("role", ["prefill", "decode"])
def test_the_engines_connector_understands_what_it_is_told(role: str) -> None:
    args = container(pods("overlays/vllm")[f"larder-{role}"])["args"]
    config = json.loads(args[args.index("--kv-transfer-config") + 1])
    assert parse(config["kv_connector_extra_config"]).master == "larder-master:50001"
    assert config["kv_connector_module_path"] == "larder.vllm"
    ports = of_kind("overlays/vllm", "Service")[f"larder-{role}"]["spec"]["ports"]
    assert f"--port={ports[0]['port']}" in args


def test_the_images_are_this_version() -> None:
    for name in BUILDS:
        assert {container(template)["image"].partition(":")[2] for template in pods(name).values()} == {VERSION}


# -- monitoring


def test_the_operators_rules_are_the_rules_of_the_plain_prometheus() -> None:
    assert build.TARGET.read_text() == build.build(), f"run python {build.__file__}"


def test_the_monitors_find_every_service_by_a_port_that_it_has() -> None:
    found = set()
    for monitor in of_kind("monitored", "ServiceMonitor").values():
        (within,) = monitor["spec"]["selector"]["matchExpressions"]
        (endpoint,) = monitor["spec"]["endpoints"]
        for name, service in of_kind("monitored", "Service").items():
            if service["metadata"]["labels"][within["key"]] in within["values"]:
                assert endpoint["port"] in {port["name"] for port in service["spec"]["ports"]}
                found.add(name)
    assert found == of_kind("monitored", "Service").keys()
    jobs = set(re.findall(r'job=~"([^"]+)"', build.TARGET.read_text()))
    assert jobs
    for job in jobs:
        assert any(re.fullmatch(job, name) for name in found), job
