"""What the leaderboard is about: the traces at hand, how each is split and replayed, and each predictor's settings."""

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from foregate.models import load
from foregate.predictors import PREDICTORS
from foregate.traces.importers import IMPORTERS
from foregate.traces.prompts import read_prompts
from foregate.traces.realign import realign
from foregate.traces.record_transformers import Options, record
from foregate.traces.schema import Trace
from foregate.traces.storage import read_trace

ROOT = Path(__file__).resolve().parent.parent
DISTANCES = (1, 2, 3, 4)
LIVE = "bank+counts+cooccur+previous"
TINY = Options(max_new_tokens=32, batch_size=8, hidden=True)

SETTINGS = {
    "xgboost": "xgboost:threads=1",
    "ensemble": "ensemble:members=bank+online,rows=40000",
    "blend": f"blend:members={LIVE},rows=40000",
    "calibrated": "calibrated:rows=40000",
}
"""In place of a predictor's defaults, on every trace: shorter, one thread, or members that need no token ids."""
VARIANTS = ("next-gate:state=residual",)
"""Compared beside the defaults."""


@dataclass(frozen=True)
class Subject:
    """One trace, and how it is examined.

    name      what --only calls it
    title     what the page calls it
    needs     the folder below the data folder
    read      makes the trace of the data folder
    said      what a reader must know of its numbers
    how, folds, as_decode  as `compare` takes them
    settings  a predictor's name -> the component compared here in its place
    left_out  a predictor's name -> why it is not compared here
    """

    name: str
    title: str
    needs: str
    read: Callable[[Path], Trace]
    said: str
    how: str = "prompt"
    folds: int | None = None
    as_decode: bool = False
    settings: Mapping[str, str] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)

    def components(self) -> list[str]:
        """Every registered predictor and the variants, with the settings they have here."""
        settings = {**SETTINGS, **self.settings}
        every = [settings.get(name, name) for name in PREDICTORS] + list(VARIANTS)
        return [text for text in every if text.partition(":")[0] not in self.left_out]


def _mixtral(data: Path) -> Trace:
    files = [data / "mixtral-8x7b-instruct" / f"{name}_2_routing.jsonl.xz" for name in ("humaneval", "gsm8k")]
    return IMPORTERS["records"](files, model="Mixtral-8x7B-Instruct-v0.1", experts=8)


def _realigned(data: Path) -> Trace:
    return realign(_mixtral(data)).trace


def _imported(form: str, folder: str, pattern: str, model: str | None = None) -> Callable[[Path], Trace]:
    return lambda data: IMPORTERS[form](sorted((data / folder).glob(pattern)), model=model)


def _tiny(data: Path) -> Trace:
    """The embedded model, with hidden states, on HumanEval."""
    model = ROOT / "models" / "tiny"
    source = f"humaneval={data / 'prompts' / 'HumanEval.jsonl.gz'}"
    loaded, tokenizer = load(str(model))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tiny.parquet"
        record(loaded, tokenizer, read_prompts(source), path, TINY, name=str(model), source=source)
        return read_trace(path)


SMALL = "dim=128,heads=4,ff=512,depth=2,epochs=8"
SHORT = {"xgboost": "xgboost:threads=1,rounds=20"}
"""Trees of 128 experts, one for each and round."""
SUBJECTS = (
    Subject(
        "deepseek",
        "DeepSeek-V2-Lite-Chat",
        "deepseek-v2-lite-chat",
        _imported("moe-beyond", "deepseek-v2-lite-chat", "*.tar.xz", "DeepSeek-V2-Lite-Chat"),
        "Prefill, replayed as if its tokens had come one by one. The source has no gate weights and does not rank a "
        "token's experts. `interlayer` and its kin are smaller than published: an epoch of the published baseline size "
        "takes 4.4 times as long.",
        as_decode=True,
        settings={
            "fusion": "fusion:window=1024",
            "online": "online:members=fusion(window=1024)",
            "ensemble": f"ensemble:members={LIVE}+ngrams,rows=40000",
            "blend": f"blend:members={LIVE}+ngrams,rows=40000",
            "mlp": "mlp:epochs=2,batch=4096,width=256",
            "interlayer": f"interlayer:{SMALL}",
            "multiscale": f"multiscale:{SMALL}",
            "augmented": f"augmented:{SMALL}",
        },
        left_out={"xgboost": "it answers a row of 64 experts in 7.7 ms; the test rows would take about three hours"},
    ),
    Subject(
        "mixtral",
        "Mixtral-8x7B-Instruct",
        "mixtral-8x7b-instruct",
        _mixtral,
        "Four problems, two of HumanEval and two of GSM8K, decode, as published: a quarter of its cells sit on a wrong "
        "token. Two folds, both tested. Parts of `memory` and `bank` were looked for on these problems (see the log).",
        folds=2,
    ),
    Subject(
        "mixtral-realigned",
        "Mixtral-8x7B-Instruct, realigned",
        "mixtral-8x7b-instruct",
        _realigned,
        "The same problems after `foregate realign`. A problem's gaps are placed by what the other problems, training "
        "ones among them, do; a part of the gain over the table before may be the repair's own. Parts of `memory` and "
        "`bank` were looked for on these problems.",
        folds=2,
    ),
    Subject(
        "qwen3",
        "Qwen3-30B-A3B (Q4_K_M, reduced to 6 of 128)",
        "qwen3-30b-a3b",
        _imported("route-trace", "qwen3-30b-a3b", "*.csv.xz"),
        "A single prompt, so that there is no interval.",
        how="half",
        settings=SHORT,
    ),
    Subject(
        "gemma",
        "Gemma-4-26B-A4B (Q4_K_M, 6 of 128)",
        "gemma-4-26b-a4b",
        _imported("route-trace", "gemma-4-26b-a4b", "*.csv.xz"),
        "A single prompt, so that there is no interval.",
        how="half",
        settings=SHORT,
    ),
    Subject(
        "qwen1.5",
        "Qwen1.5-MoE-A2.7B-Chat",
        "qwen1.5-moe-a2.7b-chat",
        _imported("vllm-logger", "qwen1.5-moe-a2.7b-chat", "*.jsonl.xz"),
        "5 of 24 layers were logged, so that a next layer is 4 to 8 layers away. Requests are cut into fragments "
        "that may stand on both sides of the split.",
        as_decode=True,
        settings={"xgboost": "xgboost:threads=1,rounds=30"},
    ),
    Subject(
        "switch",
        "Switch-base-32, decoder",
        "switch-base-32",
        _imported("router-logits", "switch-base-32", "*.csv.xz"),
        "An interval from two prompts is a rough guide.",
        how="half",
    ),
    Subject(
        "tiny",
        "the embedded model (models/tiny), with hidden states",
        "prompts",
        _tiny,
        "Recorded by this recipe on HumanEval's 164 prompts, 32 tokens written after each; replayed token by token.",
        as_decode=True,
        settings={
            "xgboost": "xgboost:threads=1,rounds=30",
            "mlp": "mlp:epochs=6,batch=2048",
            "blend": f"blend:members={LIVE}+ngrams,rows=40000",
            "ensemble": f"ensemble:members={LIVE}+ngrams,rows=40000",
        },
    ),
)
