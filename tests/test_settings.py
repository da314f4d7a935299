"""What nobody typed: defaults from a file, the cache folder, the words that a shell completes."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from commandline import PROGRAM, plain, typed  # noqa: F401
from conftest import make_trace

from foregate.cli import completion
from foregate.folders import cache_folder
from foregate.traces.storage import write_trace

HEAVY = ("numpy", "numba", "pyarrow", "torch", "transformers")


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    write_trace(make_trace(prompts=20), tmp_path / "t.parquet")
    return tmp_path / "t.parquet"


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FOREGATE_CONFIG")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path / "foregate.toml"


def test_a_default_of_the_file_holds_until_another_is_typed(
    settings: Path, trace: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    settings.write_text('[compare]\npredictors = "counts"\nas = "decode"\nseeds = 2\njson = "-"\n')
    rows = json.loads(typed(monkeypatch, capfd, "compare", trace)[1])
    assert {row["predictor"] for row in rows} == {"chance", "popularity", "previous", "tokens", "counts"}
    assert {row["replay"] for row in rows} == {"decode"}
    rows = json.loads(typed(monkeypatch, capfd, "compare", trace, "--as", "recorded", "--predictors", "tokens")[1])
    assert {row["predictor"] for row in rows} == {"chance", "popularity", "previous", "tokens"}
    assert {row["replay"] for row in rows} == {"recorded"}


def test_the_help_shows_a_default_of_the_file(settings: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    settings.write_text("[rules.create]\nlayers = 17\n")
    assert "[default: 17]" in typed(monkeypatch, capfd, "rules", "create", "--help")[1]


def test_the_nearest_file_is_read_and_the_doctor_names_it(
    settings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    def told() -> str | None:
        return json.loads(typed(monkeypatch, capfd, "doctor", "--quick", "--json")[1])["settings"]

    assert told() is None
    user = tmp_path / "config" / "foregate" / "config.toml"
    user.parent.mkdir(parents=True)
    user.write_text("")
    assert told() == str(user)
    settings.write_text("")
    assert told() == str(settings)
    other = tmp_path / "other.toml"
    other.write_text("")
    monkeypatch.setenv("FOREGATE_CONFIG", str(other))
    assert told() == str(other)
    monkeypatch.setenv("FOREGATE_CONFIG", "")
    assert told() is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[rum]\nmemory = 1\n", "rum is no command of foregate (did you mean 'run'?)"),
        ('[run]\nmemori = "1"\n', "[run] memori is no option of foregate run (did you mean 'memory'?)"),
        ('memory = "1"\n', "memory is no option of foregate"),
        ("[run]\nstats = 1\n", "[run] stats is 1; it must be true or false"),
        ("[compare]\npredictors = ['a', 'b']\n", "[compare] predictors is ['a', 'b']"),
        ("[run]\ntrust-remote-code = true\n", "trust-remote-code cannot be set in a file"),
        ("[doctor\n", "cannot be read as settings"),
        ("[rules.create]\nlayers = 'many'\n", "[rules.create] layers is 'many'"),
    ],
)
def test_what_makes_no_sense_in_a_file_names_file_and_key(
    text: str, says: str, settings: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    settings.write_text(text)
    code, out, err = typed(monkeypatch, capfd, "rules", "create", "x")
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert says in err
    assert "foregate.toml" in err


def test_a_named_file_has_to_be_there(settings: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    monkeypatch.setenv("FOREGATE_CONFIG", "nowhere.toml")
    code, _, err = typed(monkeypatch, capfd, "describe", "x")
    assert code == 2
    assert "nowhere.toml" in err


def test_one_folder_holds_what_may_be_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "foregate"
    monkeypatch.setenv("FOREGATE_CACHE", str(tmp_path / "mine"))
    assert cache_folder() == tmp_path / "mine"


def test_compiled_functions_go_to_the_cache_folder_that_is_named(tmp_path: Path) -> None:
    code = (
        "from foregate.folders import keep_compiled_code; keep_compiled_code()\n"
        "import numpy as np; from foregate.evaluation import ranks\n"
        "ranks(np.zeros((1, 4), dtype=np.float32), np.zeros((1, 2), dtype=np.int8))"
    )
    environment = {k: v for k, v in os.environ.items() if k != "NUMBA_CACHE_DIR"}
    subprocess.run([sys.executable, "-c", code], env=environment | {"FOREGATE_CACHE": str(tmp_path)}, check=True)
    (compiled,) = tmp_path.iterdir()
    assert list(compiled.rglob("*.nbc"))


# --- completion ------------------------------------------------------------------------------------------------------


def test_the_completed_names_are_the_registries() -> None:
    from foregate.hardware.presets import PRESETS
    from foregate.memory.eviction import EVICTION
    from foregate.predictors import PREDICTORS
    from foregate.predictors.speculation import SPECULATION_MODES
    from foregate.simulation.shapes import MODELS
    from foregate.simulation.strategies import STRATEGIES
    from foregate.traces.importers import IMPORTERS
    from foregate.traces.prompts import KNOWN

    assert completion.predictors("") == list(PREDICTORS)
    assert completion.evictions("") == list(EVICTION)
    assert completion.formats("") == list(IMPORTERS)
    assert completion.machines("") == list(PRESETS)
    assert completion.models("") == list(MODELS)
    assert completion.strategies("") == list(STRATEGIES)
    assert completion.modes("") == list(SPECULATION_MODES)
    assert completion.prompts("") == list(KNOWN)


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("foregate comp", "compare"),
        ("foregate compare t --predictors tok", "tokens"),
        ("foregate compare t --predictors tokens,pop", "tokens,popularity"),
        ("foregate import rec", "records"),
        ("foregate run m --evict lfu-", "lfu-decay"),
        ("foregate simulate t --profile h2", "h200"),
    ],
)
def test_a_word_is_completed_without_loading_anything_heavy(line: str, found: str) -> None:
    words = line.split()
    code = PROGRAM[2].replace(
        "main()", f"import atexit; atexit.register(lambda: print([m for m in {HEAVY} if m in sys.modules])); main()"
    )
    environment = {"_FOREGATE_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | environment, capture_output=True, text=True, check=True
    )
    *completed, loaded = done.stdout.split("\n")[:-1]
    assert completed == [found]
    assert ast.literal_eval(loaded) == []
