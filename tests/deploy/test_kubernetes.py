"""The manifests: valid, closed, and in step with the service's settings."""

import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml

from llama_api.settings import Settings, variable
from tests.support.gunicorn_server import ROOT

MANIFESTS = ROOT / "deploy" / "kubernetes"
FILES = sorted(MANIFESTS.glob("[!k]*.yaml"))
OBJECTS = [document for path in FILES for document in yaml.safe_load_all(path.read_text())]
WORKLOADS = [item for item in OBJECTS if item["kind"] in ("Deployment", "StatefulSet", "Job")]


def the(kind, name):
    """The one object of that kind and name."""
    found, = [item for item in OBJECTS if (item["kind"], item["metadata"]["name"]) == (kind, name)]
    return found


@pytest.fixture
def settings(tmp_path):
    """The settings that the ConfigMap gives the service."""
    keys = tmp_path / "keys"
    keys.write_text("a-key\n")
    lines = [line for line in (MANIFESTS / "settings.env").read_text().splitlines() if not line.startswith("#")]
    environment = dict(line.split("=", 1) for line in lines)
    known = {variable(field) for field in fields(Settings) if field.metadata}
    assert environment.keys() <= known
    return Settings.from_env(environment | {"LLAMA_API_API_KEYS_FILE": str(keys)})


def test_each_manifest_is_strictly_valid():
    """No unknown field, no wrong type, by the API's own schemas."""
    subprocess.run([Path(sys.executable).parent / "kubernetes-validate", "--strict", "--quiet", *FILES], check=True)


def test_kustomize_takes_them_all():
    """Each file is listed, and the settings are."""
    kustomization = yaml.safe_load((MANIFESTS / "kustomization.yaml").read_text())
    assert sorted(kustomization["resources"]) == [path.name for path in FILES]
    generated, = kustomization["configMapGenerator"]
    assert generated["name"] == "llama-api-settings" and all((MANIFESTS / name).exists() for name in generated["envs"])


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda item: item["metadata"]["name"])
def test_each_pod_is_as_restricted_as_its_namespace_asks(workload):
    """The restricted standard of pod security, and a file system that cannot be written."""
    pod = workload["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert all(container["securityContext"] == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
        for container in pod["containers"])
    assert all(volume.keys() & {"emptyDir", "secret"} for volume in pod.get("volumes", []))


def test_a_pod_may_finish_what_it_has_begun(settings):
    """The grace holds preStop, the longest request and gunicorn's own five seconds."""
    pod = the("Deployment", "llama-api")["spec"]["template"]["spec"]
    before = pod["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod["terminationGracePeriodSeconds"] >= before + settings.timeout + settings.queue_timeout + 5


def test_the_probes_ask_what_they_are_for():
    """A pod without Ollama gets no requests, but is not killed for it."""
    container, = the("Deployment", "llama-api")["spec"]["template"]["spec"]["containers"]
    asked = {name: container[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "liveness", "readiness")}
    assert asked == {"startup": "/livez", "liveness": "/livez", "readiness": "/readyz"}
    assert container["readinessProbe"]["timeoutSeconds"] > 1.5  # what /readyz takes at most


def test_the_service_knows_every_ollama_of_the_set():
    """OLLAMA_URL lists the set's pods by the names that its headless service gives them."""
    text = (MANIFESTS / "settings.env").read_text()
    urls = re.search(r"^LLAMA_API_OLLAMA_URL=(.*)$", text, re.M)[1].split(",")
    ollama, service = the("StatefulSet", "ollama"), the("Service", "ollama")
    assert service["spec"]["clusterIP"] == "None" and ollama["spec"]["serviceName"] == "ollama"
    assert [urlsplit(url).netloc for url in urls] == [
        f"ollama-{number}.ollama:11434" for number in range(ollama["spec"]["replicas"])]


def test_a_page_stays_with_one_pod():
    """Its figures and flights are one pod's own; both services reach the same pods by the same port."""
    every, page = (dict(the("Service", name)["spec"]) for name in ("llama-api", "llama-api-page"))
    assert page.pop("sessionAffinity") == "ClientIP"
    assert page == every
    assert every["selector"].items() <= the("Deployment", "llama-api")["metadata"]["labels"].items()


def test_the_autoscaler_looks_at_a_metric_that_there_is(serve, double, settings):
    """It adds a pod before the queue of each is full."""
    metric, = the("HorizontalPodAutoscaler", "llama-api")["spec"]["metrics"]
    name = metric["pods"]["metric"]["name"]
    assert (name.removeprefix("llama_api_"),) in serve(double).metrics()
    assert 0 < int(metric["pods"]["target"]["averageValue"]) < settings.queue
