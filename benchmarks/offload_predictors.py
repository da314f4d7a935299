"""Who looks ahead in `offload.py`: a predictor fitted on a small model that routes alike, and an oracle."""

import json
import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self, final

import numpy as np

from foregate.arrays import Bool, Float32
from foregate.components import build
from foregate.history import Query
from foregate.models import load
from foregate.predictors import PREDICTORS
from foregate.predictors.base import Need, Predictor
from foregate.predictors.storage import save
from foregate.traces.prompts import PromptText
from foregate.traces.record_transformers import Options, record
from foregate.traces.schema import Trace
from foregate.traces.storage import read_trace

LEARNED = 240  # texts to learn from: pieces of the standard library, none of them a prompt that is measured
WRITTEN = 48  # tokens that the small model writes after each
HORIZON = 3  # layers ahead that they learn to look
FITTED = ("bank", "probe", "pre-attention")
"""Who must be fitted first."""


@final
@dataclass
class Oracle(Predictor):
    """Knows a recorded sequence, and says what it routed at the same place."""

    trace: Trace
    probabilities: ClassVar[bool] = True
    needs: ClassVar[frozenset[Need]] = frozenset()

    def fit(self, trace: Trace, validation: Trace | None = None) -> Self:
        """Nothing is learned."""
        return self

    def predict(self, query: Query) -> Float32:
        """Equal shares on the experts of the same token, the first of the pass at place `seen[0]`."""
        scores = np.zeros((query.rows, query.spec.num_experts), dtype=np.float32)
        rows = query.seen + np.arange(query.rows)
        known = rows < len(self.trace)
        routed = self.trace.experts[rows[known], query.target]
        scores[np.flatnonzero(known)[:, None], routed] = 1 / routed.shape[1]
        return scores

    def covers(self, query: Query) -> Bool:
        """Every token that was recorded."""
        return query.seen + np.arange(query.rows) < len(self.trace)


def fitted(names: list[str], teacher: Path, model: Path, work: Path) -> dict[str, str]:
    """Name -> file of a predictor, fitted on what the teacher routes and kept in `work`.

    It learns from a copy of the teacher whose residual stream is as wide as the model's, and whose experts are narrow:
    the same routing and the same hidden states, up to rounding, a hundredth of the time.
    """
    files = {name: work / f"{name}.npz" for name in names}
    missing = [name for name, file in files.items() if not file.exists()]
    if missing:
        with tempfile.TemporaryDirectory() as folder:
            trace = _routing(teacher, model, Path(folder))
            for name in missing:
                save(build(PREDICTORS, name, horizon=HORIZON).fit(trace), files[name])
    return {name: str(file.resolve()) for name, file in files.items()}


def _routing(teacher: Path, model: Path, work: Path) -> Trace:
    """Of texts that are not measured, with hidden states."""
    small, large = (json.loads((folder / "config.json").read_text())["hidden_size"] for folder in (teacher, model))
    recipe = Path(__file__).resolve().parent.parent / "recipes" / "widen.py"
    wider = ["--times", "1", "--hidden-times", str(large // small), "--check", "0"]
    subprocess.run([sys.executable, recipe, teacher, "-o", work / "narrow", *wider], check=True, capture_output=True)
    narrow, tokenizer = load(str(work / "narrow"))
    how = Options(max_new_tokens=WRITTEN, batch_size=8, max_prompt_tokens=64, hidden=True)
    return read_trace(record(narrow, tokenizer, _texts(), work / "t.parquet", how)[0])


def _texts() -> list[PromptText]:
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    pieces = []
    for file in files:
        text = file.read_text(encoding="utf-8", errors="replace")
        pieces += [
            PromptText(f"{file.name}/{at}", "stdlib", text[at : at + 240]) for at in (len(text) // 3, len(text) // 2)
        ]
    return [piece for piece in pieces if piece.text.strip()][:LEARNED]
