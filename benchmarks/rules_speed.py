"""How long making all levels of rules takes on the whole DeepSeek trace. Prints; asserts nothing.

Needs ../shared/data. The trace does not rank its experts, so the first listed one stands for the primary: this measures
speed, and the rules mean nothing.
"""

import resource
import tempfile
import time
from pathlib import Path

from foregate.journeys import Journeys, Reading, read
from foregate.rulebook import LEVELS, Rulebook, create, evaluate
from foregate.rulefiles import write_rules
from foregate.traces.importers import IMPORTERS
from foregate.traces.storage import write_trace

SOURCE = Path(__file__).parents[2] / "shared" / "data" / "deepseek-v2-lite-chat" / "traces.tar.xz"


def main() -> None:
    """Read, count each level, try them, write the file."""
    if not SOURCE.is_file():
        print("skipped: ../shared/data/deepseek-v2-lite-chat is not here")
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "deepseek.parquet"
        write_trace(IMPORTERS["moe-beyond"]([SOURCE]), path)
        started = time.perf_counter()
        journeys = read([path], Reading(unranked_first=True))
        print(f"read {len(journeys.ranked):,} tokens x {journeys.num_layers} layers: {_since(started)}")
        book = _create(journeys)
        started = time.perf_counter()
        evaluate(book, journeys)
        print(f"tried all levels on the same tokens: {_since(started)}")
        started = time.perf_counter()
        levels1to5 = Rulebook(book.model, book.num_layers, book.num_experts, book.training_files, book.rules[:-1])
        write_rules(levels1to5, Path(folder) / "rules.json")
        size = (Path(folder) / "rules.json").stat().st_size
        print(f"wrote levels 1 to 5: {_since(started)}, {size / 1e6:,.0f} MB")
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB")


def _create(journeys: Journeys) -> Rulebook:
    started, parts = time.perf_counter(), []
    for level in LEVELS:
        begun = time.perf_counter()
        parts.append(create(journeys, [level]))
        print(f"  {level.label:30} {len(parts[-1].rules[0].predictions):9,} rules, {_since(begun)}")
    print(f"made all levels: {_since(started)}")
    rules = tuple(part.rules[0] for part in parts)
    return Rulebook(journeys.model, journeys.num_layers, journeys.num_experts, journeys.files, rules)


def _since(started: float) -> str:
    return f"{time.perf_counter() - started:.1f} s"


if __name__ == "__main__":
    main()
