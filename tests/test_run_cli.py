"""`foregate run` does what its help says, in a pipe too; what makes no sense is one sentence and exit code 2."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import tiny_models  # noqa: E402

from foregate.cli import main  # noqa: E402
from foregate.report.inputs import read_results  # noqa: E402
from foregate.runtime import engine as engine_module  # noqa: E402
from foregate.store.packing import pack, plan  # noqa: E402
from foregate.store.source import open_source  # noqa: E402
from foregate.traces.storage import read_trace  # noqa: E402

TINY = str(Path(__file__).parent.parent / "models" / "tiny")
SHORT = ["--max-new-tokens", "4"]


def run(monkeypatch: pytest.MonkeyPatch, *args: str) -> int:
    monkeypatch.setattr(sys, "argv", ["foregate", "run", *args])
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_json_is_all_that_is_printed_and_the_record_is_a_trace(
    monkeypatch: pytest.MonkeyPatch, capfd: Any, tmp_path: Path
) -> None:
    file = tmp_path / "ran.parquet"
    assert run(monkeypatch, TINY, "-p", "def f():", *SHORT, "--json", "--record", str(file)) == 0
    out, err = capfd.readouterr()
    answer = json.loads(out)
    assert set(answer) == {"model", "setting", "text", "memory", "stats"}
    assert (answer["model"], answer["setting"]) == (TINY, "evict predicted, read on demand")
    assert "\x1b" not in out + err
    assert "it/s" not in err  # no progress bar
    assert answer["stats"]["decode"]["tokens"] == 3
    file.with_suffix(".json").write_text(out)
    [shown] = read_results([file.with_suffix(".json")]).runs  # as `foregate report` does
    assert (shown.decode.tokens, shown.total("demanded")) == (3, answer["stats"]["demanded"])
    assert sum(p.prefill for p in read_trace(file).prompts) == len(read_trace(file)) - 3


def test_chat_talks_turn_by_turn(monkeypatch: pytest.MonkeyPatch, capfd: Any, tmp_path: Path) -> None:
    tiny_models.mixtral().save_pretrained(tmp_path)
    tokenizer = tiny_models.tokenizer()
    tokenizer.chat_template = "{% for m in messages %}w2 {{ m.content }} {% endfor %}w3"
    tokenizer.save_pretrained(tmp_path)
    lines = iter(["w4 w5", "w6", ""])
    monkeypatch.setattr("builtins.input", lambda prompt="": next(lines))
    assert run(monkeypatch, str(tmp_path), "--chat", "--memory", "50%", *SHORT) == 0
    assert len(capfd.readouterr().out.split()) >= 2


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["-p", "x", "--prefetch", "multi-layer,budget:200MiB"], "--profile machine.json"),
        (["-p", "x", "--prefetch", "previous,threshold:0.5"], "how likely"),
        (["-p", "x", "--sample", "--temperature", "0"], "--temperature"),
        (["-p", "x", "--record", "/no/such/folder/x.parquet"], "folder"),
        (["-p", "x", "--memory", "1MiB"], "needs"),
        (["-p", ""], "empty"),
        (["-p", "x", "--chat"], "--prompt"),
        (["--chat", "--json"], "--json"),
        (["--chat"], "chat template"),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capfd: Any, args: list[str], says: str
) -> None:
    assert run(monkeypatch, TINY, *args) == 2
    out, err = capfd.readouterr()
    assert not out
    assert "Traceback" not in err
    last = err.strip().splitlines()[-1]
    assert last.startswith("foregate: ")
    assert says in last


def test_a_damaged_block_is_named(monkeypatch: pytest.MonkeyPatch, capfd: Any, tmp_path: Path) -> None:
    source = open_source(TINY)
    index = pack(source, tmp_path / "store", plan(source, bits=16))
    with (tmp_path / "store" / "experts.bin").open("r+b") as blocks:
        for block in range(16):  # the first layer
            blocks.seek(block * index.layout.slot_bytes + 100)
            blocks.write(b"\xff" * 64)
    assert run(monkeypatch, TINY, "-p", "def f():", "--store", str(tmp_path / "store"), *SHORT) == 2
    assert "of mixture layer 0 does not match its checksum" in capfd.readouterr().err


def test_an_interruption_is_exit_code_130(monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    def pressed(self: Any, *args: Any, **options: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(engine_module.Engine, "generate", pressed)
    assert run(monkeypatch, TINY, "-p", "def f():") == 130
    assert "Traceback" not in capfd.readouterr().err
