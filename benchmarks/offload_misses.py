"""Experts per decoded token that were not there, by eviction and prefetch: counts, which no load changes.

They depend on the routing and on the number of slots alone, so the small model that `recipes/widen.py` widens serves.
Nothing is timed.

    python benchmarks/offload_misses.py --json misses.json
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import transformers
from offload_predictors import FITTED, fitted

import foregate
from foregate.runtime.telemetry import FIELDS

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = (
    ("lru", ""),
    ("lfu-decay", ""),
    ("s3fifo", ""),
    ("predicted", ""),
    ("predicted", "bank,none,distance=1"),
    ("predicted", "bank,none,distance=2"),
    ("predicted", "bank,none,distance=3"),
)


def counted(engine: Any, texts: list[Any], tokens: int) -> dict[str, float]:
    """Means per decoded token, over all texts one after the other."""
    with engine:
        for ids in texts:
            engine.generate(ids, max_new_tokens=tokens, do_sample=False, eos_token_id=None, pad_token_id=2)
        carried, numbers = engine.passes()
        decoded = np.array(carried) == 1
        total, passes = numbers[decoded].sum(axis=(0, 1)), int(decoded.sum())
    found = dict(zip(FIELDS, (total / passes).tolist(), strict=True))
    return {"tokens": passes, **{name: found[name] for name in FIELDS[:11]}}


def main() -> None:
    """Count, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "tiny")
    parser.add_argument("--work", type=Path, required=True, help="folder of fitted predictors, made where they are not")
    parser.add_argument("--prompts", type=int, default=34)
    parser.add_argument("--tokens", type=int, default=40)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    tokenizer = transformers.AutoTokenizer.from_pretrained(given.model)
    lines = (ROOT / "foregate" / "data" / "demo_prompts.jsonl").read_text().splitlines()
    chosen = lines[:: max(1, len(lines) // given.prompts)][: given.prompts]
    texts = [tokenizer(json.loads(line)["text"], return_tensors="pt").input_ids for line in chosen]
    asked = sorted({name for _, prefetch in SETTINGS for name in FITTED if prefetch.startswith(name)})
    files = fitted(asked, given.model, given.model, given.work)
    rows: list[dict[str, Any]] = []
    for share in ("25%", "50%"):
        for evict, prefetch in SETTINGS:
            who, _, rest = prefetch.partition(",")
            named = ",".join((files.get(who, who), rest)) if prefetch else ""
            row: dict[str, Any] = {"budget": share, "evict": evict, "prefetch": prefetch}
            engine = foregate.offload(str(given.model), memory=share, evict=evict, prefetch=named or None)
            rows.append(row | counted(engine, texts, given.tokens))
            base = next(r for r in rows if r["budget"] == share and r["evict"] == "lru")
            print(
                f"{share} {evict:10} {prefetch:22} {rows[-1]['missed']:.3f} misses a token, "
                f"{rows[-1]['missed'] / base['missed'] - 1:+.1%} against lru",
                flush=True,
            )
            if given.json:
                given.json.write_text(json.dumps({"prompts": len(texts), "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
