"""The doctor says what is there, and is not fooled by what is missing or broken."""

import json
import os
import re
import tomllib
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from foregate.cli import app
from foregate.errors import StorageError
from foregate.hardware import disk, doctor, limits


@pytest.fixture(autouse=True)
def small_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "SAMPLE", 2 * doctor.BLOCK)
    monkeypatch.setattr(doctor, "SECONDS", 0.02)


def run(*options: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["doctor", *options])
    return result.exit_code, result.output


def test_extras_are_those_of_the_package() -> None:
    project = tomllib.loads((Path(doctor.__file__).parents[2] / "pyproject.toml").read_text())["project"]

    def names(requirements: list[str]) -> set[str]:
        return {re.split(r"[<>=;\[ ]", text)[0].removesuffix("-cpu") for text in requirements}

    optional = {k: names(v) for k, v in project["optional-dependencies"].items() if k not in ("all", "dev", "docs")}
    assert {name: set(libraries) for name, libraries in doctor.EXTRAS.items()} == optional
    assert set(doctor.REQUIRED) == names(project["dependencies"])
    assert set(doctor.FEATURES.values()) == set(doctor.EXTRAS)


def test_json_and_text_say_the_same() -> None:
    code, text = run("--quick")
    assert code == 0
    code, printed = run("--quick", "--json")
    found = json.loads(printed)
    assert (code, found["sound"]) == (0, True)
    for library in found["libraries"]:
        assert re.search(rf"{library['name']}\s+{re.escape(library['version'] or 'not installed')}", text)
    for feature in found["features"]:
        assert re.search(rf"{re.escape(feature['name'])}\s+{'works' if feature['usable'] else feature['advice']}", text)
    assert "\x1b" not in text


def test_a_disk_is_measured_and_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    here, hub = doctor.examine().disks
    assert list(tmp_path.iterdir()) == []
    assert (here.folder, hub.folder) == (str(tmp_path), str(tmp_path / "hub"))
    assert here.free > 0
    assert here.direct is not None
    assert (here.bytes_per_s is not None) == here.direct
    assert here.bytes_per_s == hub.bytes_per_s  # one file system, one measurement
    if here.bytes_per_s is not None:
        assert 1e6 < here.bytes_per_s < 1e12


def test_quick_writes_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(disk, "scratch", forbidden)
    assert all(place.bytes_per_s is None and place.note for place in doctor.examine(quick=True).disks)


def test_a_folder_that_cannot_be_written_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(folder: Path, _: int) -> None:
        raise StorageError(f"cannot make a file in {folder}: Permission denied; name another with --disk")

    monkeypatch.setattr(disk, "scratch", refused)
    code, text = run()
    assert code == 0
    assert "not measured: cannot make a file in" in text
    assert "--disk" not in text


def test_what_is_not_installed_comes_with_the_line_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    there = doctor.version

    def version(name: str) -> str:
        if name in ("plotly", "torch"):
            raise PackageNotFoundError(name)
        return there(name)

    monkeypatch.setattr(doctor, "version", version)
    code, text = run("--quick")
    assert code == 0
    for feature, extra in doctor.FEATURES.items():
        line = next(line for line in text.splitlines() if line.strip().startswith(feature))
        assert (f"pip install 'foregate[{extra}]'" in line) == (extra in ("models", "train", "report"))
    assert re.search(r"CUDA device\s+none", text)


@pytest.mark.parametrize(("name", "code"), [("torch", 0), ("pyarrow", 1)])
def test_a_broken_library_is_named_and_counts_if_it_is_required(
    name: str, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = doctor.importlib.import_module

    def broken(module: str) -> Any:
        if module == name:
            raise OSError("libsomething.so.1: cannot open\nshared object file")
        return there(module)

    monkeypatch.setattr(doctor.importlib, "import_module", broken)
    returned, text = run("--quick")
    assert returned == code
    assert "cannot be imported (OSError: libsomething.so.1: cannot open shared object file)" in text
    found = doctor.examine(quick=True)
    assert [lib.name for lib in found.broken] == [name]
    assert any(feature.advice for feature in found.features)


def test_the_hub_cache_is_where_huggingface_puts_it(monkeypatch: pytest.MonkeyPatch) -> None:
    constants = pytest.importorskip("huggingface_hub.constants")
    assert str(doctor.hub_cache()) == constants.HF_HUB_CACHE
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setenv("HF_HOME", "~/elsewhere")
    assert doctor.hub_cache() == Path.home() / "elsewhere" / "hub"


@pytest.mark.parametrize(
    ("line", "files", "limit"),
    [
        ("0::/a/b", {"a/memory.max": "4096", "a/b/memory.max": "max"}, 4096),
        ("0::/a/b", {"a/memory.max": "8192", "a/b/memory.max": "4096"}, 4096),
        ("4:memory:/job", {"memory/job/memory.limit_in_bytes": "123"}, 123),
        ("4:memory:/job", {"memory/job/memory.limit_in_bytes": "9223372036854771712"}, None),
        ("4:cpu,cpuacct:/job", {"memory/job/memory.limit_in_bytes": "123"}, None),
    ],
)
def test_the_least_limit_of_the_groups_counts(
    line: str, files: dict[str, str], limit: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    read = Path.read_text
    monkeypatch.setattr(limits, "CGROUPS", tmp_path)
    monkeypatch.setattr(Path, "read_text", lambda p, **k: line if str(p) == "/proc/self/cgroup" else read(p, **k))
    assert limits._limit() == limit


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="Linux only")
def test_memory_is_that_of_the_system() -> None:
    found = limits.memory()
    assert found.total == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert found.available is not None
    assert 0 < found.available < found.total
