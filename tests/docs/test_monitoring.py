"""The alerts, the Grafana dashboard and the monitors in deploy/ use only existing metrics."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from qsync import Qsync, Task
from qsync.broker import redis_clients, schedule_run_ops
from qsync.broker.aio import AsyncBroker
from qsync.contrib.prometheus import StoreMetrics, instrument, render, worker_metrics
from qsync.keys import QueueKeys
from qsync.limit import LimitRule
from tests.docs.test_deploy import parsed
from tests.support.stores import Store

DEPLOY = Path(__file__).parents[2] / "deploy"
RULES = DEPLOY / "prometheus" / "rules.yaml"
DASHBOARD = json.loads((DEPLOY / "grafana" / "qsync.json").read_text())

UNUSED = {
    "qsync_queue_bytes_total", "qsync_queue_cancelled_total", "qsync_queue_dropped_total",
    "qsync_queue_trimmed_total", "qsync_servers_running", "qsync_type_statistics_dropped_total",
}  # fmt: skip
"""Metrics that no alert and no panel uses."""

needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool")


def promtool(*words: str | Path, text: str | None = None) -> str:
    """Run promtool, which must succeed; return its output."""
    ended = subprocess.run(
        ["promtool", *words], input=text, capture_output=True, text=True, check=False, timeout=60
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout + ended.stderr


async def exposition(url: str, prefix: str) -> str:
    """Return the metrics that a dashboard and a worker export after a task has run."""
    app, registry = Qsync(url, prefix=prefix), CollectorRegistry()
    instrument(app, registry=registry)

    @app.task(name="note")
    async def note() -> None:
        pass

    async with app, app.inspector() as inspector, app.async_client() as client, app.server():
        handle = await note.options(retention=60).enqueue()
        await handle.result(timeout=20)
        await client.enqueue(Task("held", queue="quiet"))
        await inspector.pause_type("held", queue="quiet")
        await inspector.set_limit("customer", LimitRule(concurrency=1), queue="quiet")
        ended = [
            schedule_run_ops.ended("nightly", tick, outcome, begun_us=tick, took_ms=5)
            for tick, outcome in ((10**15, "c"), (2 * 10**15, "f"))
        ]
        async with contextlib.aclosing(AsyncBroker(redis_clients.parse(url))) as broker:
            await broker.run(schedule_run_ops.note_runs(QueueKeys(prefix, "quiet"), ended))
        store = await StoreMetrics(inspector).render()
        own = generate_latest(registry)
    return (store + own + render(worker_metrics(1))).decode()


async def test_names_of_metrics_exist(valkey: Store, prefix: str) -> None:
    text = await exposition(valkey.url, prefix)
    known: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            known.setdefault(sample.name, set()).update(sample.labels)
    asked = 0
    for where, expression in expressions():
        for name, selector in re.findall(r"\b(qsync_\w+)(\{[^}]*\})?", expression):
            assert name in known, (where, name)
            labels = re.findall(r"(\w+)\s*[=!]~?", selector)
            assert set(labels) <= known[name], (where, name, labels)
            asked += 1
    assert asked > 40
    own = {name for name in known if not name.endswith(("_sum", "_count", "_created"))}
    own = {name for name in own if name.startswith("qsync_")}
    shown = {
        name for _, expression in expressions() for name in re.findall(r"qsync_\w+", expression)
    }
    assert own - shown == UNUSED


def expressions() -> Iterator[tuple[str, str]]:
    """Yield each expression of an alert or a panel, with its name."""
    for group in yaml.safe_load(RULES.read_text())["groups"]:
        for rule in group["rules"]:
            yield rule["alert"], rule["expr"]
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            yield panel["title"], target["expr"]


@needs_promtool
async def test_promtool_accepts_the_metrics(valkey: Store, prefix: str) -> None:
    text = await exposition(valkey.url, prefix)
    assert promtool("check", "metrics", text=text).strip() == ""


@needs_promtool
def test_promtool_accepts_the_alerts_and_their_tests() -> None:
    assert "14 rules found" in promtool("check", "rules", RULES)
    assert "SUCCESS" in promtool("test", "rules", RULES.with_name("rules_test.yaml"))


@needs_promtool
def test_alert_that_never_fires_is_found(tmp_path: Path) -> None:
    planted = RULES.read_text().replace("qsync_store_up == 0", "qsync_store_up == 2")
    (tmp_path / "rules.yaml").write_text(planted)
    tests = RULES.with_name("rules_test.yaml")
    shutil.copy(tests, tmp_path)
    with pytest.raises(AssertionError, match="QsyncStoreDown"):
        promtool("test", "rules", tmp_path / tests.name)


@needs_promtool
def test_the_expressions_of_the_panels_can_be_parsed(tmp_path: Path) -> None:
    rules = []
    for number, (_, expression) in enumerate(expressions()):
        text = expression.replace("$__rate_interval", "5m").replace("$queue", ".*")
        rules.append({"record": f"panel:{number}", "expr": text})
    file = tmp_path / "panels.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    assert f"{len(rules)} rules found" in promtool("check", "rules", file)


def test_panels_have_titles_units_and_space() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        assert panel["title"] and panel["description"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert max(x for x, _ in cells) < 24
        assert not cells & taken, panel["title"]
        taken |= cells
    variables = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(DASHBOARD)))
    assert used <= {*variables, "__rate_interval", "__all"}


def objects(name: str) -> list[dict[str, Any]]:
    text = (DEPLOY / "kubernetes" / name).read_text()
    return list(yaml.safe_load_all(text))


@pytest.mark.parametrize("name", ["worker.yaml", "dashboard.yaml", "disruption.yaml"])
def test_kubernetes_schema_has_every_field(name: str) -> None:
    for found in objects(name):
        kubernetes_validate.validate(found, "1.30", strict=True)


def test_unknown_field_is_found() -> None:
    [budget] = objects("disruption.yaml")
    budget["spec"]["maxUnavailible"] = 1
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(budget, "1.30", strict=True)


def pods() -> dict[str, dict[str, Any]]:
    """Return the pod templates of all deployments, by label."""
    deployments = [*objects("worker.yaml"), *objects("dashboard.yaml")]
    templates = [one["spec"]["template"] for one in deployments if one["kind"] == "Deployment"]
    return {template["metadata"]["labels"]["app"]: template for template in templates}


def test_monitors_and_budget_select_pods_that_exist() -> None:
    monitors = objects("monitoring.yaml")
    assert {one["metadata"]["name"] for one in monitors} == set(pods())
    for monitor in monitors:
        template = pods()[monitor["spec"]["selector"]["matchLabels"]["app"]]
        [container] = template["spec"]["containers"]
        [endpoint] = monitor["spec"]["podMetricsEndpoints"]
        assert endpoint["port"] in [port["name"] for port in container["ports"]]
        assert endpoint["path"] == "/metrics"
    [budget] = objects("disruption.yaml")
    assert budget["spec"]["selector"]["matchLabels"]["app"] in pods()


def test_dashboard_container_starts_with_valid_options() -> None:
    [container] = pods()["qsync-dashboard"]["spec"]["containers"]
    options = parsed([*container["command"], *container["args"]])
    [port] = container["ports"]
    assert (options["host"], options["port"]) == ("0.0.0.0", port["containerPort"])  # noqa: S104
    names = {variable["name"] for variable in container["env"]}
    assert names == {"QSYNC_URL", "QSYNC_DASHBOARD_TOKEN"}
