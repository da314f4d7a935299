"""Profiles say where their numbers are from, refuse numbers that cannot be, and leave nothing behind."""

import copy
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_trace
from typer.testing import CliRunner

from foregate.cli import app
from foregate.components import build
from foregate.errors import ChoiceError, ModelError, SourceError, StorageError
from foregate.hardware import disk
from foregate.hardware.copies import time_device
from foregate.hardware.machine import Machine, disk_of
from foregate.hardware.measure import QUICK, measure
from foregate.hardware.prediction import time_predictor
from foregate.hardware.presets import PRESETS
from foregate.hardware.profile import KINDS, Profile, Timing
from foregate.hardware.sampling import Pace
from foregate.hardware.storage import check, from_json, read, to_json, write
from foregate.predictors import PREDICTORS
from foregate.predictors.storage import save

MB = 10**6
SHM = Path("/dev/shm")
HOST = (
    "read",
    "memcpy",
    "memread",
    "work-alone",
    "work-beside-reads",
    "work-after-idle",
    "read-alone",
    "read-beside-work",
)


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> tuple[Profile, float]:
    """This machine, a tiny Mixtral and a predictor, and the seconds that it took, imports left out."""
    transformers = pytest.importorskip("transformers")
    from tiny_models import small

    folder = tmp_path_factory.mktemp("profile")
    config = transformers.MixtralConfig(**small(transformers.MixtralConfig), dtype="bfloat16")
    config.save_pretrained(folder)
    trace = make_trace()
    save(build(PREDICTORS, "repeat").fit(trace), folder / "repeat.npz", trace.spec)
    before = set(folder.iterdir())
    began = time.perf_counter()
    profile = measure(folder, model=str(folder), predictor=folder / "repeat.npz", effort=QUICK)
    assert set(folder.iterdir()) == before
    return profile, time.perf_counter() - began


def test_a_quick_profile_takes_seconds_and_measures_everything(quick: tuple[Profile, float]) -> None:
    profile, seconds = quick
    cores = os.cpu_count() or 1
    free = max(1 - (profile.machine.foreign_load or 0) / cores, 0.1)
    assert seconds * free < 15, "on a busy machine the share of its cores that was free counts"
    for kind in (*HOST, "expert", "dense", "head", "predict"):
        assert profile.of(kind), f"no {kind}"
    assert all(t.seconds > 0 and t.count >= 1 for t in profile.timings)
    derived = {t.kind for t in profile.timings if t.basis == "derived"}
    assert derived == {"expert-turn", "layer-turn", "pass-turn", "look-turn", "read-turn"}, (
        "differences of two measurements"
    )
    assert all(t.basis == "measured" for t in profile.timings if t.kind not in derived)
    assert all(t.p50 <= t.p95 <= t.p99 for t in profile.timings if t.p50 and t.p95 and t.p99)
    assert profile.model is not None
    assert profile.model.expert_bytes == 2 * 3 * 32 * 48
    for number in (
        profile.read_seconds(MB),
        profile.copy_seconds(MB),
        profile.expert_seconds(),
        profile.dense_seconds(),
    ):
        assert 0 < number < 10
    assert min(profile.predictor_seconds(), profile.head_seconds(), profile.work_slowed, profile.reads_slowed) > 0
    assert profile.machine.cores
    assert profile.machine.ram_bytes
    check(profile)


def test_the_line_through_the_reads_says_how_far_off_it_is(quick: tuple[Profile, float]) -> None:
    profile, _ = quick
    line = profile.read_line()
    for timing in profile.of("read")[:1]:
        assert abs((line.latency + line.per_byte * timing.size) / timing.seconds - 1) <= line.worst + 1e-6
    exact = [Timing("read", size, 1e-4 + size / 2e9, "measured") for size in disk.BLOCKS]
    line = Profile("exact", Machine(), tuple(exact)).read_line()
    assert line.latency == pytest.approx(1e-4)
    assert line.per_byte == pytest.approx(1 / 2e9)
    assert line.worst < 1e-6


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_valid_and_say_that_nobody_measured_them(name: str) -> None:
    profile = PRESETS[name]
    check(profile, name)
    assert profile.name == name
    assert profile.sources
    assert all(t.basis != "measured" and t.count == 0 and t.p50 is None for t in profile.timings)
    assert profile.copy_seconds(100 * MB) > 0
    assert profile.read_seconds(100 * MB) > 100 * MB / 8e9
    one, many = profile.expert_seconds(1, 50 * MB), profile.expert_seconds(100_000, 50 * MB)
    assert 0 < one <= many
    with pytest.raises(ChoiceError, match="foregate profile MODEL"):
        profile.expert_seconds()


@pytest.mark.parametrize("name", PRESETS)
def test_what_is_written_comes_back(name: str, tmp_path: Path) -> None:
    write(PRESETS[name], tmp_path / "p.json")
    assert read(tmp_path / "p.json") == PRESETS[name]
    assert [p.name for p in tmp_path.iterdir()] == ["p.json"]


def test_a_measured_profile_comes_back(quick: tuple[Profile, float], tmp_path: Path) -> None:
    write(quick[0], tmp_path / "p.json")
    assert read(tmp_path / "p.json") == quick[0]


def _set(values: Any, path: tuple[Any, ...], new: Any) -> Any:
    changed = copy.deepcopy(values)
    inner = changed
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = new
    return changed


REFUSED: dict[str, tuple[tuple[Any, ...], Any]] = {
    "format": (("format",), 2),
    "timings[0].seconds is nan": (("timings", 0, "seconds"), float("nan")),
    "timings[1].seconds is inf": (("timings", 1, "seconds"), float("inf")),
    "timings[1].seconds is -1": (("timings", 1, "seconds"), -1.0),
    "timings[0].seconds is 0": (("timings", 0, "seconds"), 0),
    "timings[0].p50 is -0.5": (("timings", 0, "p50"), -0.5),
    "timings[0]: p50, p95, p99 are [0.001]": (("timings", 0, "p50"), 1e-3),
    "timings[0].p99 is 'x'": (("timings", 0, "p99"), "x"),
    "timings[0].kind is 'thought'": (("timings", 0, "kind"), "thought"),
    "timings[0].basis is 'guess'": (("timings", 0, "basis"), "guess"),
    "timings[0].size is 0": (("timings", 0, "size"), 0),
    "timings[0].size is 1.5": (("timings", 0, "size"), 1.5),
    "timings[0].at_once is True": (("timings", 0, "at_once"), True),
    "timings[0].colour": (("timings", 0, "colour"), "red"),
    "timings is 3": (("timings",), 3),
    "machine.cores is -2": (("machine", "cores"), -2),
    "machine.foreign_load is nan": (("machine", "foreign_load"), float("nan")),
    "machine is None": (("machine",), None),
    "name is 7": (("name",), 7),
}


@pytest.mark.parametrize("told", REFUSED)
def test_a_number_that_cannot_be_is_refused_by_its_name(told: str, tmp_path: Path) -> None:
    path, new = REFUSED[told]
    (tmp_path / "p.json").write_text(json.dumps(_set(to_json(PRESETS["laptop"]), path, new)))
    with pytest.raises(SourceError) as caught:
        read(tmp_path / "p.json")
    assert told in str(caught.value)
    assert "p.json" in str(caught.value)


def test_what_is_missing_or_twice_or_no_profile_is_refused(tmp_path: Path) -> None:
    values = to_json(PRESETS["laptop"])
    with pytest.raises(SourceError, match="machine is missing"):
        from_json({k: v for k, v in values.items() if k != "machine"})
    with pytest.raises(SourceError, match="a second time"):
        from_json({**values, "timings": [*values["timings"], values["timings"][0]]})
    (tmp_path / "p.json").write_text("[1, 2")
    with pytest.raises(SourceError, match="no JSON"):
        read(tmp_path / "p.json")
    with pytest.raises(SourceError, match="is no profile"):
        from_json([1, 2])
    with pytest.raises(SourceError, match=r"p\.nowhere"):
        read(tmp_path / "p.nowhere")


@pytest.mark.parametrize("seed", range(5))
def test_more_bytes_or_more_at_once_never_take_less_time(seed: int) -> None:
    """However noisy the measurement was."""
    rng = np.random.default_rng(seed)
    noisy = tuple(
        Timing("read", size, float(size / 1e9 * rng.uniform(0.3, 3)), "measured", depth)
        for size in disk.BLOCKS
        for depth in disk.DEPTHS
    )
    for profile in (Profile("noisy", Machine(), noisy), *PRESETS.values()):
        sizes = np.unique(np.geomspace(1, 1 << 32, 200).astype(int))
        for depth in (1, 2, 3, 8, 20):
            seconds = [profile.read_seconds(int(size), depth) for size in sizes]
            assert min(seconds) > 0
            assert np.all(np.diff(seconds) >= 0)
        depths = [profile.read_seconds(10 * MB, depth) for depth in range(1, 30)]
        assert np.all(np.diff(depths) >= 0)


def test_measured_reads_are_given_back_as_measured() -> None:
    reads = tuple(
        Timing("read", size, 1e-4 + depth * size / 2e9, "measured", depth) for size in disk.BLOCKS for depth in (1, 4)
    )
    profile = Profile("exact", Machine(), reads)
    for timing in reads:
        assert profile.read_seconds(timing.size, timing.at_once) == pytest.approx(timing.seconds)
    assert profile.read_seconds(1 << 26, 16) == pytest.approx(4 * profile.read_seconds(1 << 26, 4))


def test_experts_of_another_size_or_number_of_tokens_are_in_proportion(quick: tuple[Profile, float]) -> None:
    profile, _ = quick
    assert profile.model is not None
    size = profile.model.expert_bytes
    assert profile.expert_seconds(1, 3 * size) == pytest.approx(3 * profile.expert_seconds(1))
    tokens = [profile.expert_seconds(n) for n in range(1, 400)]
    assert np.all(np.diff(tokens) >= 0)


def test_what_was_not_measured_is_asked_for_by_name() -> None:
    nothing = Profile("nothing", Machine(), ())
    for ask in ("read_seconds", "copy_seconds"):
        with pytest.raises(ChoiceError, match="foregate profile"):
            getattr(nothing, ask)(MB)
    for ask in ("expert_seconds", "dense_seconds", "head_seconds", "predictor_seconds"):
        with pytest.raises(ChoiceError, match="foregate profile"):
            getattr(nothing, ask)()
    with pytest.raises(ChoiceError, match="foregate profile"):
        nothing.work_slowed  # noqa: B018


# --- disks -----------------------------------------------------------------------------------------------------------


def test_the_file_has_no_name_while_it_is_read(tmp_path: Path) -> None:
    with disk.scratch(tmp_path, 32 << 20) as files:
        assert not list(tmp_path.iterdir())
        reads = disk.read_for(files, iter(files.places(1 << 20)), 1 << 20, 4, 0.001)
        assert len(reads.times) >= 4
        assert reads.each >= sum(reads.times) / len(reads.times)  # threads wait for each other, never the reverse


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_behind_however_it_ends(how: signal.Signals, tmp_path: Path) -> None:
    code = (
        "import signal, sys; from pathlib import Path; from foregate.hardware import disk\n"
        "from foregate.hardware.sampling import Pace\n"
        # who was started in the background has Ctrl-C ignored, and hands that on
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"with disk.scratch(Path({str(tmp_path)!r}), 64 << 20) as files:\n"
        "    print('reading', flush=True)\n"
        "    disk.time_reads(files, (1 << 16,), (4,), Pace(1, 60.0))\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"reading\n"
        process.send_signal(how)
        assert process.wait(timeout=20) != 0
    assert not list(tmp_path.iterdir())


def test_a_file_system_without_direct_reads_works_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "DIRECT", 0)
    profile = measure(tmp_path, effort=replace(QUICK, file_bytes=32 << 20, cold=64 << 20))
    assert profile.machine.direct is False
    assert any("no O_DIRECT" in note for note in profile.notes)
    assert all(t.seconds > 0 for t in profile.of("read"))


@pytest.mark.skipif(not SHM.is_dir() or disk_of(SHM)[1] != "tmpfs", reason="/dev/shm is no tmpfs here")
def test_memory_is_not_taken_for_a_disk() -> None:
    with disk.scratch(SHM, 32 << 20) as files:
        assert not files.direct
        assert disk.read_for(files, iter(files.places(1 << 20)), 1 << 20, 1, 0.0).times


def test_a_models_own_files_are_read_in_place(tmp_path: Path) -> None:
    contents = os.urandom(3 << 20)
    (tmp_path / "a.safetensors").write_bytes(contents)
    (tmp_path / "b.safetensors").write_bytes(contents[:1000])
    with disk.in_place(sorted(tmp_path.glob("*.safetensors"))) as files:
        assert {offset for _, offset in files.places(1 << 20)} == {0, 1 << 20, 2 << 20}
        assert disk.read_for(files, iter(files.places(1 << 20)), 1 << 20, 1, 0.0).times
    assert (tmp_path / "a.safetensors").read_bytes() == contents


def test_a_disk_that_refuses_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="MiB free"), disk.scratch(tmp_path, 1 << 60):
        pass
    with pytest.raises(StorageError, match="--disk"), disk.scratch(Path("/proc"), 1 << 20):
        pass
    assert not list(tmp_path.iterdir())


# --- models and the command ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["mixtral", "gpt_oss", "dbrx", "llama4", "switch_transformers", "jetmoe", "nllb_moe", "deepseek_v3", "qwen3_next"],
)
def test_the_matrices_that_are_timed_are_the_experts_own(name: str) -> None:
    torch = pytest.importorskip("torch")
    from tiny_models import family

    from foregate.hardware.compute import Experts, outline_of

    given = outline_of(family(name).to("meta"), name)
    experts = Experts(given, cold=1)
    assert 0.9 * given.shape.expert_bytes < experts.bytes <= given.shape.expert_bytes  # biases are left out
    assert all(timing.seconds > 0 for timing in experts.time((1, 3), Pace(1, 0.0)))
    assert torch.get_num_threads() >= 1


def test_a_predictor_that_reads_hidden_states_asks_for_its_model(tmp_path: Path) -> None:
    trace = make_trace(hidden=16)
    save(build(PREDICTORS, "repeat").fit(trace), tmp_path / "unknown.npz")
    with pytest.raises(ChoiceError, match="which model"):
        time_predictor(tmp_path / "unknown.npz", None, (1,), Pace(1, 0.0))
    save(build(PREDICTORS, "probe").fit(trace), tmp_path / "hidden.npz", trace.spec)
    with pytest.raises(ChoiceError, match="name its model"):
        time_predictor(tmp_path / "hidden.npz", None, (1,), Pace(1, 0.0))
    assert time_predictor(tmp_path / "hidden.npz", 16, (1, 3), Pace(1, 0.0))[1].seconds > 0


def test_the_command_prints_a_profile_that_reads_back(tmp_path: Path) -> None:
    result = CliRunner().invoke(
        app, ["profile", "--quick", "--disk", str(tmp_path), "-o", str(tmp_path / "p.json"), "--json"]
    )
    assert result.exit_code == 0, result.output
    profile = from_json(json.loads(result.stdout))
    assert profile == read(tmp_path / "p.json")
    assert {t.kind for t in profile.timings} >= set(HOST)
    assert profile.model is None


def test_the_command_refuses_in_sentences(tmp_path: Path) -> None:
    runner = CliRunner()
    assert isinstance(runner.invoke(app, ["profile", "--disk", str(tmp_path / "no")]).exception, StorageError)
    pytest.importorskip("transformers")
    assert isinstance(runner.invoke(app, ["profile", str(tmp_path / "no"), "--quick"]).exception, ModelError)


@pytest.mark.gpu
def test_the_link_to_a_gpu_is_measured() -> None:
    found = time_device((1 << 20, 1 << 24), Pace(2, 0.05))
    assert {t.kind for t in found} == {"pinned", "pageable", "readback", "on-device", "device-read"}
    profile = Profile("gpu", Machine(), tuple(found))
    check(profile)
    assert profile.has_device
    assert 0 < profile.copy_seconds(MB) < 1
    assert 0 < profile.expert_seconds(1, 50 * MB) < 1


def test_every_kind_says_what_its_size_counts() -> None:
    assert set(KINDS.values()) == {"bytes", "tokens", "operations"}
