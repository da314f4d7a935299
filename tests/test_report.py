"""The report page: complete in itself, safe against what it quotes, and drawn by a real browser where there is one."""

import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_trace

from foregate.cooccurrence import coactivation
from foregate.evaluation import Measure
from foregate.report import numbers, token_journeys
from foregate.report.board import boards
from foregate.report.results import Results, report_page, sections
from foregate.report.routing import Routing, routing_of
from foregate.report.verdict import of_board

pytest.importorskip("plotly")

EVIL = '</script><script>alert("x")</script><img src=x onerror=alert(1)>'
BASELINES = ("chance", "popularity")
FIGURES = 8 + 2 * 4 + 1  # of the page below: a trace, two boards, their splits
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
    found = [m for name, recall in scores.items() for m in rows(name, recall, trace=trace, **changes)]
    found = [m for m in found if (m.predictor, m.metric) != ("rules", "predict_us")]
    return [replace(m, value=3.0) if (m.predictor, m.metric) == ("popularity", "predict_us") else m for m in found]


@pytest.fixture(scope="module")
def routing() -> Routing:
    return routing_of(make_trace())


def page_of(*routings: Routing, found: Sequence[Measure] = (), title: str = "t", commands: Sequence[str] = ()) -> str:
    results = Results(routings=routings, measures=found, baselines=BASELINES)
    return report_page(results, sections(results), title=title, commands=commands)


@pytest.fixture(scope="module")
def page(routing: Routing) -> str:
    leaking = measures(split="token", leaks=True)
    return page_of(routing, found=[*measures(), *leaking], title="A title", commands=["foregate x"])


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
    assert all(address.startswith("#") for address in loads.found)
    assert "link" not in loads.tags
    assert "default-src 'none'" in page
    assert not re.search(r"url\(|@import", re.findall(r"<style>(.*?)</style>", page, re.DOTALL)[0])


def test_the_contents_lead_to_every_section(page: str) -> None:
    listed = re.findall(r'<li><a href="#([^"]+)">', page)
    assert listed == re.findall(r'<section id="([^"]+)"', page)
    assert listed == [
        *("trace-0", "use-0", "flow-0", "journeys-0", "board-0", "board-1", "splits-0", "again"),
    ]
    assert page.index('class="skip" href="#content"') < page.index("<nav") < page.index('id="content"')


def test_the_page_stays_below_8_mb_and_holds_plotly_once(page: str) -> None:
    from plotly.offline import get_plotlyjs

    assert len(page.encode()) <= 8_000_000
    assert page.count(get_plotlyjs()[:2000]) == 1


def test_a_large_model_stays_below_8_mb_and_says_what_was_left_out(routing: Routing) -> None:
    L, E = 60, 256
    spec = replace(routing.described.spec, layer_ids=tuple(range(L)), num_experts=E)
    described = replace(
        routing.described,
        spec=spec,
        counts=np.ones((L, E), dtype=np.int64),
        entropy=np.full(L, 8.0),
        transitions=np.ones((L - 1, E, E), dtype=np.int64),
        information=np.linspace(0, 1, L - 1),
        chance=np.zeros(L - 1),
        reuse=np.ones((L, E + 1), dtype=np.int64),
    )
    large = replace(routing, described=described, together=np.ones((L, E, E), dtype=np.int64))
    html = page_of(large, large)
    assert len(html.encode()) <= 8_000_000
    assert "of 59 pairs with the most mutual information" in html
    assert "of 60 layers with the strongest pairs" in html


def test_journeys_take_no_more_than_their_room(routing: Routing) -> None:
    trace = make_trace(prompts=40, tokens=100, layers=20, experts=64, k=6)
    for room in (20_000, 200_000):
        found = token_journeys.journeys_of(trace, None, room)
        figure = token_journeys.token_journeys(found, "j")
        assert len(json.dumps(figure.script)) <= 1.05 * room
    assert found.tokens > 16  # more than one of each prompt


def test_what_a_journey_shows_is_what_was_recorded() -> None:
    """Every expert and weight of every token that the menus hold; the largest weight first."""
    trace = make_trace()
    script = token_journeys.token_journeys(token_journeys.journeys_of(trace, None, 10**6), "j").script
    shown = list(token_journeys.rows(script))
    rows = {p.name: np.flatnonzero(trace.sequence == i) for i, p in enumerate(trace.prompts)}
    assert len(shown) == trace.experts.size
    found = {(r["prompt"], r["token"].split(":")[0], r["layer"], r["expert"]): r["weight"] for r in shown}
    for name, places in rows.items():
        for row in places:
            for layer, (experts, weights) in enumerate(zip(trace.experts[row], trace.weights[row], strict=True)):
                for expert, weight in zip(experts, weights, strict=True):
                    at = found[name, str(trace.position[row]), str(layer), int(expert)]
                    assert at == pytest.approx(float(weight), abs=1e-4)
    first = [r["weight"] for r in shown[:2]]
    assert first == sorted(first, reverse=True)


def test_experts_together_are_counted_once_a_token() -> None:
    trace = make_trace(k=3)
    counted = coactivation(trace.experts, trace.spec.num_experts)
    L, E = trace.spec.num_layers, trace.spec.num_experts
    plain = np.zeros((L, E, E), dtype=np.int64)
    for token in trace.experts:
        for layer, experts in enumerate(token):
            plain[layer][np.ix_(experts, experts)] += 1
    np.testing.assert_array_equal(counted, plain)


def evil(routing: Routing) -> Routing:
    """Everything that comes from a file is hostile."""
    source = replace(routing.described.provenance, notes=(EVIL,), source=(EVIL,), versions={EVIL: EVIL})
    described = replace(routing.described, spec=replace(routing.described.spec, model=EVIL), provenance=source)
    prompts = tuple(replace(p, prompt=EVIL, labels=tuple(EVIL for _ in p.labels)) for p in routing.journeys.prompts)
    return replace(routing, described=described, journeys=replace(routing.journeys, prompts=prompts))


def test_what_is_quoted_cannot_become_markup(routing: Routing) -> None:
    html = page_of(evil(routing), found=[*measures(EVIL), *rows(EVIL, 0.3)], title=EVIL, commands=[EVIL])
    assert "<script>alert" not in html
    assert "<img" not in without_scripts(html)
    data = re.findall(r'<script type="application/json" id="figures">(.*?)</script>', html, re.DOTALL)[0]
    assert "<" not in data
    assert any(EVIL in str(trace.get("name")) for f in json.loads(data)["figures"].values() for trace in f["data"])


def test_every_figure_says_how_it_was_obtained_and_what_it_shows(page: str) -> None:
    figures = re.findall(r"<figure.*?</figure>", without_scripts(page), re.DOTALL)
    assert len(figures) == FIGURES
    for figure in figures:
        assert re.search(r"Measured|Simulated|Derived", re.findall(r"<figcaption>(.*?)</figcaption>", figure)[0])
        assert re.search(r'role="img" aria-label="[^"]{20,}"', figure)


def test_the_summary_names_the_best_predictor_and_its_gain() -> None:
    board = boards(measures(), BASELINES)[0]
    assert of_board(board) == (
        "On random, split by prompt, replayed as recorded: the best predictor 1 layer ahead is tokens:order=2 with "
        "50.0\u00a0% [48.0, 52.0] at recall@2, 30.0 points over the best baseline, popularity with 20.0\u00a0% "
        "[18.0, 22.0]."
    )


def test_the_summary_admits_overlap_defeat_and_leaks() -> None:
    close = [*rows("popularity", 0.4, spread=0.1), *rows("rules", 0.45, spread=0.1)]
    assert "intervals overlap" in of_board(boards(close, BASELINES)[0])
    beaten = [*rows("popularity", 0.4), *rows("rules", 0.3), *rows("oracle", 1.0)]
    assert "no predictor beats the best baseline, popularity" in of_board(boards(beaten, BASELINES)[0])
    assert "leaks" in of_board(boards(measures(leaks=True, split="token"), BASELINES)[0])


def test_leaking_rows_are_marked_and_stand_last(page: str) -> None:
    found = boards([*measures(leaks=True, split="token"), *measures()], BASELINES)
    assert [b.leaks for b in found] == [False, True]
    names = ("board-0", "board-1")
    honest, leaking = (re.findall(rf'<section id="{n}".*?</section>', page, re.DOTALL)[0] for n in names)
    assert "leak" not in honest.lower()
    assert [t.count('class="mark leak"') for t in re.findall(r"<table.*?</table>", leaking, re.DOTALL)] == [4, 4]


def test_numbers_are_written_one_way() -> None:
    assert numbers.value("top1", 0.6234) == "62.3\u00a0%"
    assert numbers.value("bytes", 12_345_678) == "12.3\u00a0MB"
    assert numbers.value("bytes", 999_900) == "1\u00a0MB"
    assert numbers.value("predict_us", 1234.5) == "1,234"
    assert numbers.value("log_loss", 0.5) == "0.500"
    assert numbers.value("fit_s", 0.00001) == "<\u00a00.001"


# --- in a browser ---------------------------------------------------------------------------------------------------


def probe(scripts: dict[str, str]) -> str:
    """Scripts that run after the page's own; what they return is found in an element that `render` looks for."""
    each = "".join(f"found.{name} = await (async () => {{ {script} }})();" for name, script in scripts.items())
    return (
        "<script>(async () => { const later = (ms) => new Promise((r) => setTimeout(r, ms)); await later(4000);"
        f"const found = {{}}; {each}"
        'document.body.append(Object.assign(document.createElement("pre"), '
        '{ id: "answer", textContent: JSON.stringify(found) })); })();</script></body>'
    )


SORT = """
const table = document.querySelector("table.board");
const order = () => [...table.tBodies[0].rows].map((r) => r.cells[0].dataset.value).join(" ");
const buttons = [...table.tHead.querySelectorAll("button")];
const click = (text) => { buttons.find((b) => b.textContent === text).click(); return order(); };
const seen = [order(), click("recall@2"), click("recall@2"), click("predictor"), click("cost, \u00b5s")];
return [...seen, table.querySelector("[aria-sort]").textContent];
"""
PICK = """
const pick = (select, value) => { select.value = value; select.dispatchEvent(new Event("change")); };
const z = (id) => document.getElementById(id).data[0].z;
const said = (id) => document.getElementById(id).getAttribute("aria-label");
const layers = document.querySelector("select[data-figure=transition-0]");
const flows = document.querySelector("select[data-figure=flows-0]");
const together = document.querySelector("select[data-figure=together-0]");
const before = [z("transition-0")[0][0], said("transition-0"), said("flows-0")];
pick(layers, layers.options[2].value);
pick(together, together.options[3].value);
const [prompts, tokens] = document.querySelectorAll("[data-script] select");
pick(prompts, "2");
pick(tokens, "7");
await later(1000);
const journey = document.getElementById("journey-0");
return {
  labels: [...document.querySelectorAll("select")].every((s) => s.labels.length === 1),
  before, matrix: z("transition-0"), together: z("together-0"), followed: flows.value,
  links: document.getElementById("flows-0").data[0].link.value,
  said: [said("transition-0"), said("flows-0"), said("journey-0")],
  prompt: prompts.selectedOptions[0].textContent, token: tokens.selectedOptions[0].textContent,
  points: journey.data.at(-1), line: journey.data[0].y,
  table: [...journey.closest("figure").querySelectorAll("tbody td")].map((cell) => cell.textContent),
};
"""
DARK = """
const ink = () => getComputedStyle(document.querySelector("#load-0 .xtitle")).fill;
const paper = () => getComputedStyle(document.body).backgroundColor;
const button = document.getElementById("theme");
const seen = [[paper(), ink(), button.textContent]];
button.click();
await later(1500);
seen.push([paper(), ink(), button.textContent]);
return seen;
"""


@pytest.fixture(scope="module")
def browser() -> str:
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("no chromium here: the page was not looked at")
    return found


def render(browser: str, html: str, folder: Path, **scripts: str) -> tuple[str, list[str], dict[str, Any]]:
    """The page after its scripts ran, what the console said, and what `scripts` found there, one after the other."""
    assert html.count("</body>") == 1
    file = folder / "page.html"
    file.write_text(html.replace("</body>", probe(scripts)), encoding="utf-8")
    quiet = ("--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync")
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", *quiet, f"--user-data-dir={folder / 'profile'}"]
    command += ["--enable-logging=stderr", "--virtual-time-budget=20000", "--dump-dom", file.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    answer = re.findall(r'<pre id="answer">(.*?)</pre>', done.stdout, re.DOTALL)
    assert answer, "the page's scripts did not end"
    said = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return done.stdout, said, json.loads(unescape(answer[0]))


@pytest.fixture(scope="module")
def looked(browser: str, page: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[str], dict[str, Any]]:
    """One visit, for a browser takes seconds to draw all figures."""
    return render(browser, page, tmp_path_factory.mktemp("browser"), sort=SORT, pick=PICK, dark=DARK)


def test_a_browser_draws_all_figures_without_complaint(looked: tuple[str, list[str], Any]) -> None:
    dom, console, _ = looked
    assert console == []
    figures = without_scripts(dom).split("<figure")[1:]
    assert len(figures) == FIGURES
    assert all("js-plotly-plot" in f and "<svg" in f for f in figures)


def test_a_click_sorts_the_leaderboard(looked: tuple[str, list[str], Any]) -> None:
    best = "tokens:order=2 rules popularity chance"
    worst = "chance popularity rules tokens:order=2"
    by_name = "chance popularity rules tokens:order=2"
    quickest = "popularity chance tokens:order=2 rules"  # it was not timed: it stays last
    assert looked[2]["sort"] == [best, worst, best, by_name, quickest, "cost, \u00b5s"]


def test_menus_show_the_layer_and_the_token_that_are_picked(looked: tuple[str, list[str], Any]) -> None:
    seen = looked[2]["pick"]
    assert seen["labels"]
    trace = make_trace()
    uses = np.stack([(trace.experts == e).any(axis=2) for e in range(8)], axis=2)  # [T, L, E]
    after = (uses[:, 2, :, None] & uses[:, 3, None, :]).sum(axis=0)
    np.testing.assert_allclose(seen["matrix"], after / uses[:, 2].sum(axis=0)[:, None], atol=1e-4)
    beside = (uses[:, 3, :, None] & uses[:, 3, None, :]).sum(axis=0) / uses[:, 3].sum(axis=0)[:, None]
    np.testing.assert_allclose(seen["together"], beside - np.eye(8), atol=1e-4)
    assert seen["followed"] == "layers 2 \u2192 3"
    assert seen["links"] == np.sort(after, axis=None)[::-1][:30].tolist()
    assert "From layer 2 to 3" in seen["said"][0]
    assert "from layer 2 to layer 3" in seen["said"][1]
    row = np.flatnonzero([f"set{i % 2}/{i}" == seen["prompt"] for i in trace.sequence])[7]
    assert seen["token"] == f"7: token {trace.token_id[row]}"
    assert seen["points"]["y"] == trace.experts[row].ravel().tolist()
    assert seen["line"] == trace.experts[row, :, 0].tolist()
    assert len(seen["table"]) == 5
    e, w = trace.experts[row, 4], trace.weights[row, 4]
    assert seen["table"][4] == f"{e[0]} ({w[0]:.2f}), {e[1]} ({w[1]:.2f})"
    assert f"layer 4: {seen['table'][4]}." in seen["said"][2]


def test_a_button_turns_the_page_dark(looked: tuple[str, list[str], Any]) -> None:
    before, after = looked[2]["dark"]
    assert before == ["rgb(255, 255, 255)", "rgb(27, 31, 36)", "Dark page"]
    assert after == ["rgb(20, 23, 27)", "rgb(231, 234, 238)", "Light page"]


def test_a_malicious_name_runs_nothing_in_a_browser(browser: str, routing: Routing, tmp_path: Path) -> None:
    found = [*measures(EVIL), *rows(EVIL, 0.9, trace=EVIL)]
    dom, console, _ = render(browser, page_of(evil(routing), found=found, title=EVIL, commands=[EVIL]), tmp_path)
    assert console == []
    assert "<img" not in without_scripts(dom)
