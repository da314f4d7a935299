"""The report page: complete in itself, safe against what it quotes, and drawn by a real browser where there is one."""

import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from conftest import make_trace

from foregate.description import Description, describe
from foregate.evaluation import Measure
from foregate.report import numbers
from foregate.report.board import boards
from foregate.report.page import build_page, summary

pytest.importorskip("plotly")

EVIL = '</script><script>alert("x")</script><img src=x onerror=alert(1)>'
BASELINES = ("chance", "popularity")
ROW = Measure(
    predictor="",
    trace="random",
    split="prompt",
    leaks=False,
    replay="recorded",
    metric="",
    layer=None,
    distance=None,
    budget=None,
    value=0.0,
    low=None,
    high=None,
    n=0,
    coverage=None,
    top_k=2,
)


def rows(predictor: str, recall: float, *, spread: float = 0.02, **changes: object) -> list[Measure]:
    """What `compare` says of one predictor, roughly."""
    shared = replace(ROW, predictor=predictor, coverage=0.9, **changes)  # type: ignore[arg-type]
    found = [
        replace(shared, metric=m, coverage=None, value=v)
        for m, v in (("fit_s", 0.5), ("bytes", 1e4), ("predict_us", 9))
    ]
    for distance in (1, 2):
        at = recall / distance
        for layer in (None, 1, 2, 3):
            cell = replace(shared, distance=distance, layer=layer, n=10)
            low, high = at - spread, at + spread
            found += [replace(cell, metric=m, value=at / 2) for m in ("top1", "exact_set")]
            found += [
                replace(cell, metric="recall", budget=b, value=min(1, at * b / 2), low=low, high=high)
                for b in (1, 2, 4)
            ]
    return found


def measures(trace: str = "random", **changes: object) -> list[Measure]:
    scores = {"chance": 0.1, "popularity": 0.2, "tokens:order=2": 0.5, "rules": 0.4}
    return [m for name, recall in scores.items() for m in rows(name, recall, trace=trace, **changes)]


@pytest.fixture(scope="module")
def described() -> Description:
    return describe(make_trace())


@pytest.fixture(scope="module")
def page(described: Description) -> str:
    leaking = measures(split="token", leaks=True)
    return build_page(
        [described], [*measures(), *leaking], title="A title", commands=["foregate x"], baselines=BASELINES
    )


class Loads(HTMLParser):
    """Every address that a page would load or lead to."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.found += [str(value) for name, value in attrs if name in ("src", "href", "srcset", "action", "data")]


def without_scripts(page: str) -> str:
    return re.sub(r"<script\b.*?</script>", "", page, flags=re.DOTALL)


def test_the_page_loads_nothing(page: str) -> None:
    loads = Loads()
    loads.feed(page)
    assert loads.found == []
    assert "link" not in loads.tags
    assert "default-src 'none'" in page
    assert not re.search(r"url\(|@import", re.findall(r"<style>(.*?)</style>", page, re.DOTALL)[0])


def test_the_page_stays_below_8_mb_and_holds_plotly_once(page: str) -> None:
    from plotly.offline import get_plotlyjs

    assert len(page.encode()) <= 8_000_000
    assert page.count(get_plotlyjs()[:2000]) == 1


def test_a_large_model_stays_below_8_mb_and_says_what_was_left_out(described: Description) -> None:
    L, E = 60, 256
    spec = replace(described.spec, layer_ids=tuple(range(L)), num_experts=E)
    large = replace(
        described,
        spec=spec,
        counts=np.ones((L, E), dtype=np.int64),
        entropy=np.full(L, 8.0),
        transitions=np.ones((L - 1, E, E), dtype=np.int64),
        information=np.linspace(0, 1, L - 1),
        chance=np.zeros(L - 1),
        reuse=np.ones((L, E + 1), dtype=np.int64),
    )
    html = build_page([large, large], [], title="t", commands=[])
    assert len(html.encode()) <= 8_000_000
    assert "of 59 pairs with the most mutual information" in html


def test_what_is_quoted_cannot_become_markup(described: Description) -> None:
    spec = replace(described.spec, model=EVIL)
    source = replace(described.provenance, notes=(EVIL,), source=(EVIL,), versions={EVIL: EVIL})
    quoted = replace(described, spec=spec, provenance=source)
    html = build_page([quoted], [*measures(EVIL), *rows(EVIL, 0.3)], title=EVIL, commands=[EVIL])
    assert "<script>alert" not in html
    assert "<img" not in without_scripts(html)
    data = re.findall(r'<script type="application/json" id="figures">(.*?)</script>', html, re.DOTALL)[0]
    assert "<" not in data
    assert any(EVIL in str(trace.get("name")) for f in json.loads(data).values() for trace in f["data"])


def test_every_figure_says_how_it_was_obtained_and_what_it_shows(page: str) -> None:
    figures = re.findall(r"<figure>.*?</figure>", page, re.DOTALL)
    assert len(figures) == 5 + 2 * 4
    for figure in figures:
        assert re.search(r"Measured|Simulated|Derived", re.findall(r"<figcaption>(.*?)</figcaption>", figure)[0])
        assert re.search(r'role="img" aria-label="[^"]{20,}"', figure)


def test_the_summary_names_the_best_predictor_and_its_gain() -> None:
    board = boards(measures(), BASELINES)[0]
    assert summary(board) == (
        "On random, split by prompt, replayed as recorded: the best predictor 1 layer ahead is tokens:order=2 with "
        "50.0\u00a0% [48.0, 52.0] at recall@2, 30.0 points over the best baseline, popularity with 20.0\u00a0% "
        "[18.0, 22.0]."
    )


def test_the_summary_admits_overlap_defeat_and_leaks() -> None:
    close = [*rows("popularity", 0.4, spread=0.1), *rows("rules", 0.45, spread=0.1)]
    assert "intervals overlap" in summary(boards(close, BASELINES)[0])
    beaten = [*rows("popularity", 0.4), *rows("rules", 0.3), *rows("oracle", 1.0)]
    assert "no predictor beats the best baseline, popularity" in summary(boards(beaten, BASELINES)[0])
    assert "leaks" in summary(boards(measures(leaks=True, split="token"), BASELINES)[0])


def test_leaking_rows_are_marked_and_stand_last(page: str) -> None:
    found = boards([*measures(leaks=True, split="token"), *measures()], BASELINES)
    assert [b.leaks for b in found] == [False, True]
    tables = re.findall(r'<table class="board">.*?</table>', page, re.DOTALL)
    assert [t.count('class="mark leak"') for t in tables] == [0, 0, 4, 4]


def test_numbers_are_written_one_way() -> None:
    assert numbers.value("top1", 0.6234) == "62.3\u00a0%"
    assert numbers.value("bytes", 12_345_678) == "12.3\u00a0MB"
    assert numbers.value("bytes", 999_900) == "1\u00a0MB"
    assert numbers.value("predict_us", 1234.5) == "1,234"
    assert numbers.value("log_loss", 0.5) == "0.500"
    assert numbers.value("fit_s", 0.00001) == "<\u00a00.001"


# --- in a browser ---------------------------------------------------------------------------------------------------

SORTS = """
<script>
const table = document.querySelector("table.board");
const order = () => [...table.tBodies[0].rows].map((r) => r.cells[0].dataset.value).join(" ");
const buttons = [...table.tHead.querySelectorAll("button")];
const click = (text) => { buttons.find((b) => b.textContent === text).click(); return order(); };
const seen = [order(), click("recall@2"), click("recall@2"), click("predictor"), click("cost, \u00b5s")];
document.body.dataset.orders = seen.join(" | ");
document.body.dataset.sorted = table.querySelector("[aria-sort]").textContent;
</script></body>"""


@pytest.fixture(scope="module")
def browser() -> str:
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("no chromium here: the page was not looked at")
    return found


def render(browser: str, html: str, folder: Path) -> tuple[str, str]:
    """The page after its scripts ran, and what the console said."""
    file = folder / "page.html"
    file.write_text(html, encoding="utf-8")
    quiet = ("--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync")
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", *quiet, f"--user-data-dir={folder / 'profile'}"]
    command += ["--enable-logging=stderr", "--virtual-time-budget=20000", "--dump-dom", file.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)


def test_a_browser_draws_all_figures_without_complaint(browser: str, page: str, tmp_path: Path) -> None:
    dom, console = render(browser, page, tmp_path)
    assert console == ""
    figures = without_scripts(dom).split("<figure>")[1:]
    assert len(figures) == 5 + 2 * 4
    assert all("js-plotly-plot" in f and "<svg" in f for f in figures)


def test_a_click_sorts_the_leaderboard(browser: str, described: Description, tmp_path: Path) -> None:
    found = [m for m in measures() if (m.predictor, m.metric) != ("rules", "predict_us")]
    found = [replace(m, value=3.0) if (m.predictor, m.metric) == ("popularity", "predict_us") else m for m in found]
    html = build_page([], found, title="t", commands=[], baselines=BASELINES)
    assert html.count("</body>") == 1
    dom, console = render(browser, html.replace("</body>", SORTS), tmp_path)
    assert console == ""
    best = "tokens:order=2 rules popularity chance"
    worst = "chance popularity rules tokens:order=2"
    by_name = "chance popularity rules tokens:order=2"
    quickest = "popularity chance tokens:order=2 rules"
    assert f'data-orders="{best} | {worst} | {best} | {by_name} | {quickest}"' in dom
    assert 'data-sorted="cost, \u00b5s"' in dom


def test_a_malicious_name_runs_nothing_in_a_browser(browser: str, described: Description, tmp_path: Path) -> None:
    quoted = replace(described, spec=replace(described.spec, model=EVIL))
    html = build_page([quoted], [*measures(EVIL), *rows(EVIL, 0.9, trace=EVIL)], title=EVIL, commands=[EVIL])
    dom, console = render(browser, html, tmp_path)
    assert console == ""
    assert "<img" not in without_scripts(dom)
