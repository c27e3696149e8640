"""Pages in headless Chromium: they render, load nothing, say no error, sort, and fit a phone, light and dark."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mae_pipe import reporting
from tests.run_folders import downstream, pretrained

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run --disable-background-networking "
    "--disable-component-update --allow-file-access-from-files --hide-scrollbars --enable-logging=stderr --v=0 "
    "--virtual-time-budget=3000"
)
LOSS = {"better": 0.2, "worse": 0.5, "other": 0.4}


def browse(page: Path, folder: Path, *flags: str, at: str = "") -> tuple[str, list[str], list[str]]:
    """What Chromium makes of a page: the document, what its console says, and what the page asks of a network."""
    log = folder / "net.json"
    own = (f"--user-data-dir={folder / 'profile'}", f"--log-net-log={log}", "--host-resolver-rules=MAP * ~NOTFOUND")
    ran = subprocess.run(
        [str(CHROMIUM), *FLAGS.split(), *own, *flags, f"{page.resolve().as_uri()}{at}"],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    said = [line for line in ran.stderr.splitlines() if "CONSOLE" in line]
    asked = [event.get("params", {}) for event in json.loads(log.read_text())["events"]]
    # What Chromium asks for itself has no origin.
    urls = [params["url"] for params in asked if params.get("initiator") not in (None, "not an origin")]
    return ran.stdout, said, urls


def order(document: str) -> list[str]:
    """The names of runs from top to bottom."""
    body = document[document.index('data-key="runs.name"') :]
    body = body[body.index("<tbody>") : body.index("</tbody>")]
    return [re.sub("<[^>]*>", "", row.partition("</td>")[0]).strip() for row in body.split("<tr>")[1:]]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    top = tmp_path_factory.mktemp("browsed")
    runs = [
        pretrained(top / "better", 150),
        pretrained(top / "worse", 150, ratio=0.9),
        pretrained(top / "other-with-a-name-that-is-long-and-longer", 150, ratio=0.5),
    ]
    for run, top1 in zip(runs, (0.8, 0.7, 0.9), strict=True):
        downstream(run / "probe", "probe", top1=top1)
    return reporting.write(runs, top / "report.html")


def test_a_page_that_loads_or_fails_would_be_seen(tmp_path: Path) -> None:
    bad = tmp_path / "bad.html"
    bad.write_text('<!doctype html><img src="http://one.test/x.png"><script>console.error("trouble")</script>')
    _, said, asked = browse(bad, tmp_path, "--dump-dom")
    assert "trouble" in said[0]
    assert set(asked) == {"http://one.test/x.png"}


def test_the_page_loads_nothing_says_nothing_and_stands_sorted(page: Path, tmp_path: Path) -> None:
    document, said, asked = browse(page, tmp_path, "--dump-dom")
    assert (said, asked) == ([], [])  # nor does the policy block anything, which the console would say
    assert [name[:5] for name in order(document)] == ["other", "bette", "worse"]  # by the probe
    assert document.count("<button>") == document.count("data-key=") - document.count('data-key="${')


@pytest.mark.parametrize(
    ("at", "names"),
    [
        ("#sort=runs.loss", ["bette", "worse", "other"]),
        ("#sort=-runs.name", ["worse", "other", "bette"]),
        ("#sort=runs.nothing", ["other", "bette", "worse"]),
    ],
)
def test_its_address_sorts_a_table(page: Path, tmp_path: Path, at: str, names: list[str]) -> None:
    document, said, _ = browse(page, tmp_path, "--dump-dom", at=at)
    assert [name[:5] for name in order(document)] == names
    assert said == []


def test_a_click_on_a_heading_sorts(page: Path, tmp_path: Path) -> None:
    click = "<script>document.querySelector('[data-key=\"runs.loss\"] button').click()</script></body>"
    allowed = re.sub(r"script-src &#39;sha256-[^\"]*", "script-src 'unsafe-inline'", page.read_text())
    (tmp_path / "clicked.html").write_text(allowed.replace("</body>", click))
    document, said, _ = browse(tmp_path / "clicked.html", tmp_path, "--dump-dom")
    assert [name[:5] for name in order(document)] == ["other", "worse", "bette"]  # numbers begin with the largest
    assert re.search(r'data-key="runs.loss" aria-sort="descending"', document)
    assert said == []


def test_it_fits_a_phone_and_a_wide_screen(page: Path, tmp_path: Path) -> None:
    frame = f'<iframe src="{page.as_uri()}" style="border: 0; height: 800px; width: '
    frames = "".join(f'{frame}{width}px"></iframe>' for width in (400, 1600))
    measure = (
        "[...document.querySelectorAll('iframe')].map((f) => f.contentDocument.documentElement.scrollWidth).join()"
    )
    outer = tmp_path / "outer.html"
    outer.write_text(f"<!doctype html>{frames}<script>onload = () => {{ document.title = {measure} }}</script>")
    document, said, _ = browse(outer, tmp_path, "--dump-dom")
    assert said == []
    assert re.search("<title>(.*?)</title>", document).group(1) == "400,1600"  # type: ignore[union-attr]


def test_light_and_dark_are_two_pictures(page: Path, tmp_path: Path) -> None:
    brightness = []
    for scheme in (1, 0):  # light, dark
        shot = tmp_path / f"{scheme}.png"
        browse(page, tmp_path, f"--blink-settings=preferredColorScheme={scheme}", f"--screenshot={shot}")
        with Image.open(shot) as image:
            brightness.append(float(np.median(np.asarray(image.convert("L")))))
    assert brightness[0] > 200
    assert brightness[1] < 60
