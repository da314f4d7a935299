"""How tests run what the documentation says: small real files for its names, and the few commands that are not run."""

import csv
import io
import json
import lzma
import shlex
import shutil
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import pytest

from foregate.adapters import ADAPTERS
from foregate.cli import main
from foregate.predictors import PREDICTORS
from foregate.traces.export import export_jsonl
from foregate.traces.importers import IMPORTERS
from foregate.traces.prompts import read_prompts
from foregate.traces.schema import Trace
from foregate.traces.storage import read_trace, write_trace

ROOT = Path(__file__).resolve().parent.parent

STANDS_FOR = {
    # What a page leaves to its reader.
    "FORMAT SOURCE... -o trace.parquet": "records records.jsonl.xz -o imported.parquet",
    "MODEL": "models/tiny",
    '--prompt "..."': '--prompt "def f"',
    "Qwen/Qwen1.5-MoE-A2.7B --prompts gsm8k --limit 50": "models/tiny --prompts prompts.txt --limit 2",
    "foregate/data/demo_prompts.jsonl": "prompts.txt",
    # The same with fewer tokens, rounds, trials, seconds.
    "record models/tiny": "record models/tiny --max-new-tokens 3",
    "--max-new-tokens 40 --batch-size": "--batch-size",
    "--max-new-tokens 64": "",
    '--prompt "def f"': '--prompt "def f" --max-new-tokens 3',
    '--prompt "def add(a, b):"': '--prompt "def add(a, b):" --max-new-tokens 3',
    "--max-new-tokens 40 --threads": "--threads",
    "profile models/tiny": "profile models/tiny --quick",
    "doctor": "doctor --quick",
    "rules create": "rules create --layers 8",  # of models/tiny
    "--split all --folds 2": "--split all --folds 2 --shares 20,20",  # 1 % of so few tokens is nobody
    "foregate simulate ": "foregate simulate --jobs 1 ",
    "foregate plan ": "foregate plan --jobs 1 ",
    "--trials 20": "--trials 2",
    "--trials 50": "--trials 2",
    "train fusion ": "train fusion:epochs=1,width=8 ",
    "train mlp ": "train mlp:epochs=1 ",
    "train interlayer:preset=baseline ": "train interlayer:preset=baseline,dim=8,ff=8,depth=1,epochs=1 ",
    "--predictors fusion": "--predictors fusion:epochs=1,width=8",
    "hybrid,xgboost,mlp,memory": "hybrid,xgboost:rounds=1,mlp:epochs=1,memory",
    "rules,xgboost": "rules,xgboost:rounds=1",
}
"""A part of a command -> what is typed for it here; applied from the first to the last."""

NOT_RUN = {
    "make demo": "runs commands that this test runs, after setting up .venv; tests/test_demo.py runs the demo",
    "make test": "is this",
    "foregate demo --out demo/": "tests/test_demo.py runs it",
    "python recipes/leaderboard.py --jobs 2": "hours; tests/test_leaderboard.py runs it on small traces",
    "python recipes/mixtral_study.py": "needs the published traces, and rewrites the page",
    "python recipes/widen.py -o WIDE": "writes 6.4 GB; tests/test_widen.py runs it on fewer",
    **dict.fromkeys(
        [f"foregate pack WIDE -o WIDE{bits} --bits {bits}" for bits in (16, 8, 4)],
        "needs the 6.4 GB above; the same command is run on models/tiny",
    ),
    "python benchmarks/offload.py --model WIDE --int16 WIDE16 --int8 WIDE8 --int4 WIDE4 --rounds 3 --tokens 36 "
    "--prompt-tokens 24 --blocks B.jsonl --md offload.md": "half an hour of measuring",
    "python benchmarks/offload_misses.py --work NOTES --prompts 24 --tokens 40": "an hour of measuring",
    "python benchmarks/sim_vs_run.py WIDE --work VALIDATION --rounds 3": "a quarter of an hour of measuring",
    "python benchmarks/sim_vs_run.py WIDE --store WIDE16 --work VALIDATION16 --rounds 3": "the same again",
    "python recipes/train_switch.py build/switch": "half an hour of training",
    "python recipes/switch_study.py --model build/switch": "needs the model above; tests/test_switch.py runs its parts",
    "python recipes/switch_study.py --model google/switch-base-8 --prompts build/switch/held_out.jsonl --traces "
    "build/switch-base-8 --out build/switch-base-8.md": "needs the network",
}
"""A command -> why it is not run."""

ELSEWHERE = ("how-to-predictor.md", "how-to-eviction.md", "how-to-importer.md", "how-to-model-adapter.md")
"""Pages whose programs tests/test_examples.py runs."""

WRITES = ("-o", "--output", "--output-dir", "--out", "--json", "--record", "--curve", "--plot", "--figures")
"""Options that name what a command makes."""


def meant(text: str) -> str:
    """What is typed here for a command of a page."""
    for part, instead in STANDS_FOR.items():
        text = text.replace(part, instead)
    return text


def make_shelf(folder: Path) -> Path:
    """Small real files under the names that pages use, all from one recording of models/tiny."""
    texts = [p.text.splitlines()[0][:40] for p in read_prompts(str(ROOT / "foregate" / "data" / "demo_prompts.jsonl"))]
    (folder / "prompts.txt").write_text("\n".join(dict.fromkeys(texts[::4][:14])) + "\n", encoding="utf-8")
    recorded = folder / "trace.parquet"
    quiet = ("--max-new-tokens", "4", "--hidden")
    run(
        ["record", str(ROOT / "models" / "tiny"), "--prompts", str(folder / "prompts.txt"), *quiet, "-o", str(recorded)]
    )
    for name in ("tiny", "deepseek", "big"):
        shutil.copy(recorded, folder / f"{name}.parquet")
    trace = read_trace(recorded, hidden=False)
    export_jsonl(trace, folder / "records.jsonl.xz")
    for name, prompts in (("humaneval_2_routing", [0, 1]), ("gsm8k_2_routing", [2, 3]), ("humaneval", [0, 1])):
        _published(trace.take_prompts(prompts), name.split("_")[0], folder / f"{name}.jsonl")
    mixtral = [folder / f"{name}_2_routing.jsonl.xz" for name in ("humaneval", "gsm8k")]
    write_trace(IMPORTERS["records"](mixtral), folder / "mixtral.parquet")
    _beyond(trace, folder / "traces.tar.xz")
    for problem in ("0", "1"):
        run(["journeys", str(folder / "humaneval.jsonl.xz"), "-p", problem, "-t", "0", "10", "-o", str(folder)])
    decoding = [str(recorded), "--as", "decode"]
    machine = [*decoding, "--profile", "laptop", "--model", str(ROOT / "models" / "tiny"), "--jobs", "1"]
    run(["compare", *decoding, "--predictors", "memory", "--json", str(folder / "results.json")])
    run(["simulate", *machine, "--strategies", "on-demand", "--json", str(folder / "simulated.json")])
    run(["plan", *machine, "--predictors", "counts", "-o", str(folder / "plan.json")])
    return folder


def _published(trace: Trace, dataset: str, path: Path) -> None:
    """Records as the Mixtral study published them: some were lost, and the rest of their layer was numbered anew."""
    export_jsonl(trace, path)
    kept, place = list[str](), dict[tuple[int, int], int]()
    for line in path.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        problem = int(str(record["problem_id"]).rpartition("/")[2]) % 2
        if (record["layer"], record["token_idx"]) in ((3, 11), (5, 12)):
            continue
        at = (problem, record["layer"])
        place[at] = place.get(at, -1) + 1
        kept.append(json.dumps({**record, "dataset": dataset, "problem_id": problem, "token_idx": place[at]}))
    path.with_suffix(".jsonl.xz").write_bytes(lzma.compress("\n".join(kept).encode()))
    path.unlink()


def _beyond(trace: Trace, path: Path) -> None:
    """A tar of a CSV per prompt, in the moe-beyond format."""
    with tarfile.open(path, "w:xz") as tar:
        for number, rows in enumerate(trace.sequences()):
            text = io.StringIO()
            lines = csv.writer(text)
            lines.writerow(["Layer ID", "Batch Number", "Token", "Activated Expert IDs"])
            for layer in range(trace.spec.num_layers):
                for token, ids in zip(trace.token_id[rows], trace.experts[rows, layer].tolist(), strict=True):
                    lines.writerow([layer + 1, 0, f"t{token}", str(ids)])
            member = tarfile.TarInfo(f"prompt_{number}.csv")
            data = text.getvalue().encode()
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def run(words: list[str]) -> None:
    """A foregate command in this process. Raises: AssertionError where it fails."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["foregate", *words])
        with pytest.raises(SystemExit) as end:
            main()
        assert not end.value.code, f"exit code {end.value.code}"


@dataclass
class Session:
    """One reader at one page: a folder that fills as they go.

    shelf   where small files for the page's names are
    done    commands that another page ran, word for word -> what they made; they are not run twice
    """

    folder: Path
    shelf: Path
    done: dict[str, Path]
    space: ModuleType = field(default_factory=lambda: ModuleType("page"))

    def __post_init__(self) -> None:
        for name in ("models", "foregate"):
            (self.folder / name).symlink_to(ROOT / name)

    def command(self, text: str) -> None:
        """Type a foregate command; names of files that the page did not make are taken from the shelf."""
        typed = meant(text).partition(" | ")[0]  # what stands behind a pipe is not ours
        words = shlex.split(typed)
        outputs = [Path(words[i + 1]) for i, word in enumerate(words[:-1]) if word in WRITES]
        for path in outputs:  # pages show alternatives under one name
            if path.is_dir():
                shutil.rmtree(path)
            elif str(path) != "-":
                path.unlink(missing_ok=True)
        self._fetch(word for word in words if Path(word) not in outputs)
        if typed in self.done:
            for path in self.done[typed].iterdir():
                _copy(path, Path(path.name))
            return
        before = _listing()
        run(self._globbed(typed)[1:])
        self.done[typed] = kept = self.shelf / "made" / str(len(self.done))
        kept.mkdir(parents=True)
        for path in _listing() - before:
            _copy(Path(path[0]), kept / path[0])

    def program(self, text: str, place: str) -> None:
        """Run a program of the page; its names stay for the next one."""
        self._fetch(text.replace('"', " ").split())
        sys.modules[self.space.__name__] = self.space  # dataclasses look their module up
        exec(compile(text, place, "exec"), vars(self.space))

    def _fetch(self, names: Iterator[str] | list[str]) -> None:
        for name in names:
            stem = name if "*" in name else f"{Path(name).stem}.*"  # a plan has its predictor beside it
            wanted = "*" in name or ((self.shelf / name).is_file() and not Path(name).exists())
            for there in self.shelf.glob(stem) if wanted and not name.startswith("/") else ():
                if not Path(there.name).exists():
                    shutil.copy(there, there.name)

    def _globbed(self, text: str) -> list[str]:
        """As a shell passes it on: patterns become names, unless they are quoted."""
        found = []
        for word in _split(text):
            plain = shlex.split(word)[0]
            names = sorted(map(str, Path().glob(plain))) if plain == word and "*" in word else []
            found += names or [plain]
        return found


def _split(text: str) -> list[str]:
    lexer = shlex.shlex(text, posix=False)
    lexer.whitespace_split = True
    lexer.commenters = ""
    return list(lexer)


def _listing() -> set[tuple[str, int]]:
    """Names in the current folder, with the time that they were changed."""
    return {(path.name, path.stat().st_mtime_ns) for path in Path().iterdir()}


def _copy(path: Path, to: Path) -> None:
    if path.is_dir():
        shutil.copytree(path, to, dirs_exist_ok=True)
    elif path.is_file():
        shutil.copy(path, to)


def registries() -> list[tuple[dict[str, object], dict[str, object]]]:
    """What programs of pages may add to, as it is now."""
    return [(registry, dict(registry)) for registry in (PREDICTORS, IMPORTERS, ADAPTERS)]  # type: ignore[list-item]
