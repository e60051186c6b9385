"""The rules and the board, by promtool and by a real Prometheus that looks at the service as it is run."""

import json
import re
import shutil
import subprocess

import pytest
import yaml

from tests.support.gunicorn_server import ROOT, new_prompt, together, until
from tests.support.programs import needed
from tests.support.prometheus_server import MONITORING, Prometheus

KEY = "a-key-for-the-tests"
RULES = [rule for group in yaml.safe_load((MONITORING / "rules.yml").read_text())["groups"] for rule in group["rules"]]
ALERTS = {rule["alert"]: rule for rule in RULES if "alert" in rule}
BOARD = json.loads((MONITORING / "grafana" / "llama-api.json").read_text())
PANELS = [panel for panel in BOARD["panels"] if panel["type"] != "row"]


def watched():
    """Every expression of the board and the rules; of an alert, what it compares or finds absent."""
    for rule in RULES:
        yield re.sub(r"^absent\((.*)\)$", r"\1", re.sub(r" [<>=]+ [0-9.]+$", "", rule["expr"]))
    for panel in PANELS:
        for target in panel["targets"]:
            yield target["expr"].replace("$__rate_interval", "1m").replace("$instance", ".*")


def test_promtool_has_no_word_to_say_against_the_rules(tmp_path):
    """Neither against the configuration that loads them."""
    promtool = needed("prometheus", "promtool")
    shutil.copytree(MONITORING, tmp_path, dirs_exist_ok=True)
    (tmp_path / "key").write_text(KEY)
    subprocess.run([promtool, "check", "config", "--lint=all", "--lint-fatal", tmp_path / "prometheus.yml"], check=True)


def test_each_alert_fires_for_the_fault_that_it_is_for():
    """promtool plays each fault; none is left out."""
    played = ROOT / "tests" / "deploy" / "rules_test.yml"
    subprocess.run([needed("prometheus", "promtool"), "test", "rules", played], check=True)
    cases = [case for test in yaml.safe_load(played.read_text())["tests"] for case in test.get("alert_rule_test", [])]
    assert {case["alertname"] for case in cases if case["exp_alerts"]} == ALERTS.keys()


@pytest.mark.parametrize("name", ALERTS)
def test_each_alert_says_what_to_do(name):
    """Its link leads to a heading of the guide."""
    path, _, anchor = ALERTS[name]["annotations"]["runbook_url"].partition("#")
    headings = re.findall(r"^#+ (.*)$", (ROOT / path).read_text(), re.M)
    assert anchor == name.lower() and name in headings


def test_the_board_has_room_for_each_panel_and_one_source():
    """No panel covers another one, and all ask the source that is provisioned."""
    cells = [(x, y) for panel in BOARD["panels"] for place in [panel["gridPos"]]
             for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])]
    assert len(cells) == len(set(cells)) and max(x for x, _ in cells) < 24
    source, = yaml.safe_load((MONITORING / "grafana" / "datasource.yml").read_text())["datasources"]
    asked = {target["datasource"]["uid"] for panel in PANELS for target in panel["targets"]}
    assert asked == {source["uid"]} and len({panel["id"] for panel in BOARD["panels"]}) == len(BOARD["panels"])


@pytest.fixture
def service(serve, double):
    """A service with a key."""
    return serve(double, api_keys=KEY, parallel=2, queue=2)


@pytest.fixture
def prometheus(service, tmp_path):
    """Prometheus before it."""
    needed("prometheus")
    with Prometheus(tmp_path / "prometheus", [service], KEY) as prometheus:
        yield prometheus


def test_every_expression_has_a_value_and_a_lost_ollama_is_told(prometheus, service, double):
    """After mixed traffic; then Ollama goes away, and the alerts for that fire, and end when it is back."""
    def ask(prompt, **fields):
        return service.ask(prompt, headers={"X-API-Key": KEY}, **fields)

    until(lambda: prometheus.values("llama_api_generations_running"))
    question = new_prompt()
    for _ in range(3):
        ask(question)
    together(8, lambda n: ask(new_prompt("[[gap=0.02]]"), stream=n % 2 == 0))
    assert ask(new_prompt("[[fault=crashed]]")).status == 502
    families = re.findall(r"^# HELP (\w+)", service.get("/metrics", headers={"X-API-Key": KEY}).body.decode(), re.M)
    expressions = sorted(set(watched()))
    looked_at = {re.sub("_bucket$", "", name) for text in expressions for name in re.findall(r"llama_api_\w+", text)}
    assert set(families) <= looked_at, "nobody looks at the others"
    until(lambda: not [text for text in expressions if not prometheus.values(text)], what="a value for each")
    assert not prometheus.firing & {"NoOllama", "OllamaDown", "ServiceDown", "InstanceDown"}
    double.stop()
    until(lambda: {"NoOllama", "OllamaDown"} <= prometheus.firing, what="the alerts")
    double.start()
    until(lambda: not {"NoOllama", "OllamaDown"} & prometheus.firing, what="the end of the alerts")
