"""What published or measured references say about the real traces must come out of ours. Skipped where they are not."""

from pathlib import Path

import pytest

from foregate.comparison import compare
from foregate.evaluation import Measure
from foregate.traces.importers import IMPORTERS


def value(rows: list[Measure], predictor: str, metric: str, budget: int | None = None) -> float:
    return next(
        m.value for m in rows if (m.predictor, m.metric, m.budget, m.layer) == (predictor, metric, budget, None)
    )


def test_mixtral_by_problem(shared: Path) -> None:
    """One problem of each data set trains, the other tests, both directions; as published, not realigned."""
    folder = shared / "mixtral-8x7b-instruct"
    trace = IMPORTERS["records"]([folder / f"{name}_2_routing.jsonl.xz" for name in ("humaneval", "gsm8k")])
    rows = compare(trace, folds=2, predictors=["rules", "memory"]).measures
    assert value(rows, "rules", "top1") == pytest.approx(0.246, abs=0.02)
    assert value(rows, "rules", "top2") == pytest.approx(0.396, abs=0.02)
    assert value(rows, "memory", "top1") == pytest.approx(0.55, abs=0.02)
    assert value(rows, "memory", "top2") == pytest.approx(0.71, abs=0.02)


def test_deepseek_by_prompt(shared: Path) -> None:
    trace = IMPORTERS["moe-beyond"]([shared / "deepseek-v2-lite-chat" / "traces.tar.xz"])
    assert (len(trace), len(trace.prompts)) == (138_595, 1_420)
    rows = compare(trace, as_decode=True, predictors=["cooccur"]).measures
    references = {"popularity": 0.14, "previous": 0.27, "tokens": 0.47, "cooccur": 0.48}
    for predictor, reference in references.items():
        assert value(rows, predictor, "recall", 6) == pytest.approx(reference, abs=0.03), predictor
