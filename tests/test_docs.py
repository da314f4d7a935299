"""The documentation tells the truth: every command and program in it runs, links lead somewhere, the site builds."""

import importlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import documented
from documented import ELSEWHERE, NOT_RUN, ROOT, STANDS_FOR, Session, meant

import foregate

with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(ROOT / "recipes"))
    doc_pages: Any = importlib.import_module("doc_pages")
    api_reference: Any = importlib.import_module("api_reference")
    cli_reference: Any = importlib.import_module("cli_reference")

PAGES: list[Path] = doc_pages.pages()
STEPS = {page.name: doc_pages.steps(page) for page in PAGES}
COMMANDS = [step for steps in STEPS.values() for step in steps if not step.python]
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)")


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return documented.make_shelf(tmp_path_factory.mktemp("shelf"))


@pytest.fixture(scope="module")
def done() -> dict[str, Path]:
    return {}


@pytest.fixture(autouse=True)
def as_it_was(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What commands and programs set in this process is gone afterwards."""
    import torch

    threads, before = torch.get_num_threads(), documented.registries()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    for registry, entries in before:
        registry.clear()
        registry.update(entries)


@pytest.mark.parametrize("page", [name for name in STEPS if STEPS[name]])
def test_every_command_and_program_of_a_page_runs_in_its_order(
    page: str, shelf: Path, done: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small files stand for the page's names (`STANDS_FOR`); what is not run is listed with the reason (`NOT_RUN`)."""
    monkeypatch.chdir(tmp_path)
    session = Session(tmp_path, shelf, done)
    for step in STEPS[page]:
        if (step.python and page in ELSEWHERE) or step.text in NOT_RUN:
            continue
        try:
            if step.python:
                session.program(step.text, step.place)
            else:
                assert step.text.startswith("foregate "), "a command that is not foregate's belongs into NOT_RUN"
                session.command(step.text)
        except Exception as error:
            pytest.fail(f"{step.place}: {meant(step.text)}\n{type(error).__name__}: {error}")


def test_nothing_is_listed_that_no_page_says() -> None:
    said = {step.text for step in COMMANDS}
    assert set(NOT_RUN) <= said, "NOT_RUN names commands that are gone"
    for part in STANDS_FOR:
        before = [k for k in STANDS_FOR if k != part][: list(STANDS_FOR).index(part)]
        texts = [step.text for step in COMMANDS]
        for earlier in before:
            texts = [text.replace(earlier, STANDS_FOR[earlier]) for text in texts]
        assert any(part in text for text in texts), f"STANDS_FOR has {part!r}, which no command holds"


@pytest.mark.parametrize("text", [text for text in NOT_RUN if text.startswith("python ")])
def test_a_script_that_is_not_run_is_there_and_takes_its_options(text: str) -> None:
    script, *words = text.split()[1:]
    source = (ROOT / script).read_text(encoding="utf-8")
    for option in (word for word in words if word.startswith("--")):
        assert f'"{option}"' in source, f"{script} takes no {option}"


def test_targets_of_make_that_pages_name_are_there() -> None:
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    for step in COMMANDS:
        if step.text.startswith("make "):
            assert step.text.split()[1] in targets, step.place


def anchors(page: Path) -> set[str]:
    """Of a page's headings, as the site and GitHub make them, and those that it gives itself."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+?)(?: \{ #\S+ \})?$", text, re.MULTILINE)
    plain = {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}
    return plain | {re.sub(r"-+", "-", name) for name in plain}


@pytest.mark.parametrize("page", PAGES, ids=[p.name for p in PAGES])
def test_every_link_leads_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for link in (a or b for a, b in LINK.findall(text)):
        if link.startswith(("http://", "https://")):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), f"{page.name} links to {link}"
        if page.parent.name == "docs":
            assert target.is_relative_to(ROOT / "docs"), f"{page.name} links out of the site: {link}"
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), f"{page.name} links to {link}, and there is no such heading"


def test_the_command_line_reference_is_that_of_the_commands() -> None:
    page = ROOT / "docs" / "cli.md"
    assert page.read_text(encoding="utf-8") == cli_reference.reference(), "run python recipes/cli_reference.py"


def test_commands_and_options_that_pages_mention_are_there() -> None:
    """In running text: `foregate compare --folds 2`."""
    known = {
        match[1]: set(re.findall(r"--[a-z0-9-]+", section))
        for section in cli_reference.reference().split("\n## ")
        if (match := re.match(r"foregate ([\w -]+)\n", section))
    }
    for page in PAGES:
        text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
        for said in re.findall(r"`foregate ([a-z][^`]*)`", text.replace("\n", " ")):
            name = next((n for n in sorted(known, key=len, reverse=True) if f"{said} ".startswith(f"{n} ")), None)
            assert name is not None, f"{page.name} mentions `foregate {said}`, which is no command"
            unknown = set(re.findall(r"--[a-z0-9-]+", said)) - known[name] - {"--help"}
            assert not unknown, f"{page.name} mentions `foregate {said}`, which takes no {', '.join(unknown)}"


def test_every_public_name_is_in_the_api_reference() -> None:
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    named = re.findall(r"^::: (\S+)$", text, re.MULTILINE)
    short = {name.rpartition(".")[2] for name in named} | {"errors"}
    assert set(foregate.__all__) - {"ForegateError"} <= short
    for name in named:
        section = api_reference.reference(name)
        assert len(section) > 60, f"{name} has no docstring"


# --- the built site -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("mkdocs")
    folder = tmp_path_factory.mktemp("site")
    words = ["build", "--strict", "--quiet", "--config-file", str(ROOT / "mkdocs.yml"), "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", *words], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert not re.search("WARNING|ERROR", done.stdout + done.stderr), done.stderr
    return folder


def test_the_site_builds_without_a_warning_and_has_every_page(site: Path) -> None:
    for page in PAGES:
        if page.parent.name == "docs":
            assert (site / page.with_suffix(".html").name).is_file(), page.name


def test_every_page_can_be_reached_from_the_navigation(site: Path) -> None:
    home = (site / "index.html").read_text(encoding="utf-8")
    for page in PAGES:
        if page.parent.name == "docs" and page.stem != "index":
            assert f'href="{page.stem}.html"' in home, f"mkdocs.yml's nav lacks {page.name}"


def test_the_site_asks_no_other_host(site: Path) -> None:
    """Scripts, styles, fonts and pictures come with it; links that a reader may follow are no requests."""
    for file in sorted(site.rglob("*.html")):
        page = file.read_text(encoding="utf-8")
        loads = re.findall(r"<(?:script|link|img|iframe|source)\b[^>]*?\b(?:src|href)=[\"']?(https?:)?//", page)
        assert not [tag for tag in loads if tag], file.name
    for file in [*site.rglob("*.css"), *(site / "assets").rglob("*.css")]:
        assert not re.search(r"url\([\"']?(https?:)?//", file.read_text(encoding="utf-8")), file.name


def test_a_browser_shows_pages_without_complaint_and_without_network(site: Path, tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium here: the pages were not looked at")
    for name in ("index", "api", "tour"):
        quiet = ("--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync")
        words = [browser, "--headless", "--no-sandbox", "--disable-gpu", *quiet, f"--user-data-dir={tmp_path / name}"]
        words += ["--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr", "--virtual-time-budget=5000"]
        shown = subprocess.run(
            [*words, "--dump-dom", (site / f"{name}.html").as_uri()],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        complaints = [line for line in shown.stderr.splitlines() if "CONSOLE" in line]
        assert not complaints, complaints
        assert "md-content" in shown.stdout
