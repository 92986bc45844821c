"""Runs the examples for web frameworks with the commands that they name."""

from __future__ import annotations

import contextlib
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.browser import Visit, chromium
from tests.support.dashboard import SAME
from tests.support.stores import Store, wait_until
from tests.support.web_process import WebProcess

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
FASTAPI = EXAMPLES / "fastapi_shop"

Start = Callable[..., WebProcess]


@pytest.fixture
def start(own_store: Store, tmp_path: Path) -> Iterator[Start]:
    """Return a function that starts a program in a folder, with the test's own store."""
    with contextlib.ExitStack() as stack:

        def start(folder: Path, words: str, **environment: str) -> WebProcess:
            log = tmp_path / f"{len(list(tmp_path.glob('*.log')))}.log"
            environment = {"QSYNC_URL": own_store.url, **environment}
            process = WebProcess(folder, log, *shlex.split(words), **environment)
            return stack.enter_context(process)

        yield start


def commands(text: str) -> tuple[str, str]:
    """Return the commands of an example: its worker and its site."""
    worker, site = re.findall(
        r"^(?:\$ )?(?:[A-Z_]+=\w+ )?((?:qsync|uvicorn|gunicorn) .*)$", text, re.M
    )
    return worker, site


def connections(store: Store) -> int:
    """Return how many other clients are connected."""
    with store.client() as client:
        return len(client.client_list()) - 1


def buys(web: WebProcess, product: str = "lamp") -> str:
    """Buy a product; return the address of the order."""
    answer = httpx.post(f"{web.url}/orders/{product}", timeout=30)
    assert answer.status_code == 303, answer.text
    return answer.headers["location"]


def shows(web: WebProcess, path: str, text: str) -> None:
    """Wait until a page has the text."""

    def shown() -> bool:
        answer = web.get(path)
        return answer is not None and text in answer.text

    wait_until(shown, 40, message=f"{text!r} is not at {path}:\n{web.log()}")


# Pages.

SHOWN_ELSEWHERE = ("async def own(site: FastAPI)", "TestClient(api) as web:", "lifespan(app)(api)")
"""Programs on documentation pages that test_fastapi.py runs."""


@pytest.mark.parametrize(
    ("page", "program"),
    [
        ("fastapi.md", "fastapi_shop/shop/*.py"),
        ("flask.md", "flask_shop.py"),
        ("litestar.md", "litestar_shop.py"),
    ],
)
def test_page_shows_the_example_unchanged(page: str, program: str) -> None:
    source = "\n".join(file.read_text() for file in EXAMPLES.glob(program))
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / page).read_text(), re.DOTALL)
    shown = [text for text in blocks if not any(known in text for known in SHOWN_ELSEWHERE)]
    assert len(shown) > 2
    assert [text for text in shown if text not in source] == []


# FastAPI.


def test_fastapi_example_from_the_request_to_the_result_in_the_browser(
    start: Start, own_store: Store
) -> None:
    worker, site = commands((FASTAPI / "README.md").read_text())
    web = start(FASTAPI, f"{site} --port {{port}}", SHOP_STAFF_PASSWORD="secret").wait_ready()
    serving = start(FASTAPI, worker)
    with chromium() as browser:
        password = {"username": "ann", "password": "secret"}
        visit = Visit(browser, web.url, http_credentials=password)
        visit.go("/")
        visit.click("Buy a lamp")
        visit.says("One lamp is on its way.")
        order = visit.page.url.rpartition("/")[2]
        visit.go("/ops/tasks?queue=default&state=completed")
        visit.says(order)
        visit.check()
        visit.close()
    assert httpx.get(f"{web.url}/ops/", auth=("ann", "wrong")).status_code == 401
    paused = httpx.post(
        f"{web.url}/ops/queue/pause",
        data={"queue": "default", "sure": "1"}, headers={**SAME, "Origin": web.url},
        auth=("ann", "secret"), follow_redirects=True, timeout=30,
    )  # fmt: skip
    assert "ann" in paused.text
    assert httpx.get(f"{web.url}/orders/none").status_code == 404
    serving.stop()
    own_store.kill()
    away = httpx.post(f"{web.url}/orders/lamp", timeout=30)
    assert (away.status_code, away.headers["retry-after"]) == (503, "5")
    web.stop()


def test_fastapi_example_starts_its_store(start: Start, tmp_path: Path) -> None:
    """Both commands run unchanged. The worker and the site share the store in the folder."""
    folder = tmp_path / "copy"
    (folder / "shop").mkdir(parents=True)
    for file in (FASTAPI / "shop").glob("*.py"):
        (folder / "shop" / file.name).write_text(file.read_text())
    worker, site = commands((FASTAPI / "README.md").read_text())
    web = start(folder, f"{site} --port {{port}}", QSYNC_URL="").wait_ready()
    serving = start(folder, worker, QSYNC_URL="")
    shows(web, buys(web), "One lamp is on its way.")
    serving.stop()
    web.stop()


SERVERS = {
    "uvicorn": "uvicorn shop.main:api --port {port}",
    "uvicorn with workers": "uvicorn shop.main:api --port {port} --workers 2",
    "gunicorn": "gunicorn shop.main:api -k uvicorn_worker.UvicornWorker -w 2 -b 127.0.0.1:{port}",
    "gunicorn that loads before it forks": (
        "gunicorn shop.main:api -k uvicorn_worker.UvicornWorker -w 2 -b 127.0.0.1:{port} --preload"
    ),
}


@pytest.mark.parametrize("server", SERVERS)
def test_fastapi_stops_cleanly(server: str, start: Start, own_store: Store) -> None:
    web = start(FASTAPI, SERVERS[server]).wait_ready()
    for _ in range(8):
        order = buys(web)
        shows(web, order, "Your order is pending.")
    assert connections(own_store) > 0
    said = web.stop()
    assert said.count("Application shutdown complete") == said.count("Application startup complete")
    wait_until(lambda: connections(own_store) == 0)


def test_fastapi_reloads_and_stops_cleanly(start: Start, own_store: Store, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    (folder / "shop").mkdir(parents=True)
    for file in (FASTAPI / "shop").glob("*.py"):
        (folder / "shop" / file.name).write_text(file.read_text())
    web = start(folder, "uvicorn shop.main:api --port {port} --reload").wait_ready()
    order = buys(web)
    main = folder / "shop" / "main.py"
    main.write_text(main.read_text().replace("Your order is", "The order is"))
    web.says("Application startup complete", times=2)
    shows(web, order, "The order is pending.")
    said = web.stop()
    assert said.count("Application shutdown complete") == 2
    wait_until(lambda: connections(own_store) == 0)


# Recipes.


def test_flask_example_works_from_request_to_result(start: Start) -> None:
    worker, site = commands((EXAMPLES / "flask_shop.py").read_text())
    web = start(EXAMPLES, f"{site} -b 127.0.0.1:{{port}} -w 2 --threads 4").wait_ready()
    serving = start(EXAMPLES, worker)
    shows(web, buys(web), "One lamp is on its way.")
    assert httpx.get(f"{web.url}/orders/none").status_code == 404
    serving.stop()
    web.stop()


def test_litestar_example_works_from_request_to_result(start: Start, own_store: Store) -> None:
    worker, site = commands((EXAMPLES / "litestar_shop.py").read_text())
    web = start(EXAMPLES, f"{site} --port {{port}}").wait_ready()
    serving = start(EXAMPLES, worker)
    order = buys(web)
    shows(web, order, "One lamp is on its way.")
    assert httpx.get(f"{web.url}/orders/none").status_code == 404
    assert httpx.get(f"{web.url}/ops/").status_code == 403
    page = httpx.get(
        f"{web.url}/ops/tasks?queue=default&state=completed", headers={"x-user": "ann"}
    )
    assert order.rpartition("/")[2] in page.text
    assert 'href="/ops/static/style.css"' in page.text
    style = httpx.get(f"{web.url}/ops/static/style.css", headers={"x-user": "ann"})
    assert style.status_code == 200
    serving.stop()
    web.stop()
    wait_until(lambda: connections(own_store) == 0)
