"""How fast `foregate import` reads, and how small what it writes is. Prints; asserts nothing.

    python benchmarks/import_speed.py [DATA]        DATA: the folder of published traces, default ../shared/data

Speed of `records` is measured on the published Mixtral records, repeated under new problem ids until there are 500,000,
decompressed, from opening the file to a `Trace` in memory: the best and the median of five.
"""

import lzma
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from foregate.traces.importers import IMPORTERS
from foregate.traces.schema import Trace
from foregate.traces.storage import write_trace

RECORDS = 500_000
ROUNDS = 5


def main() -> None:
    """Measure on the data that is there."""
    data = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1] / "../shared/data"
    sources = [data / f"mixtral-8x7b-instruct/{name}_2_routing.jsonl.xz" for name in ("humaneval", "gsm8k")]
    texts = [lzma.decompress(path.read_bytes()) for path in sources]
    with tempfile.TemporaryDirectory() as folder:
        _speed(Path(folder) / "many.jsonl", texts)
        _sizes(Path(folder), sources, sum(map(len, texts)))
        archive = data / "deepseek-v2-lite-chat/traces.tar.xz"
        seconds, trace = _timed(lambda: IMPORTERS["moe-beyond"]([archive]))
        print(f"moe-beyond, all of {archive.name}: {seconds:.1f} s for {len(trace):,} tokens")


def _speed(path: Path, texts: list[bytes]) -> None:
    lines = [line for text in texts for line in text.splitlines(keepends=True)]
    copies = -(-RECORDS // len(lines))
    with path.open("wb") as out:
        for copy in range(copies):
            for line in lines:
                head, rest = line.split(b'"problem_id": ', 1)
                problem, tail = rest.split(b",", 1)
                out.write(b'%s"problem_id": %d,%s' % (head, int(problem) + 2 * copy, tail))
    times = [_timed(lambda: IMPORTERS["records"]([path]))[0] for _ in range(ROUNDS)]
    count = copies * len(lines)
    print(
        f"records: {count:,} records, {path.stat().st_size / 1e6:.0f} MB; "
        f"{count / min(times):,.0f} records/s at best, {count / statistics.median(times):,.0f} median of {ROUNDS}"
    )


def _sizes(folder: Path, sources: list[Path], text: int) -> None:
    trace = IMPORTERS["records"](sources)
    for name, kept in (("with weights", trace), ("--no-weights", trace.without(weights=True))):
        path = folder / "mixtral.parquet"
        write_trace(kept, path)
        size = path.stat().st_size
        print(f"both Mixtral files, {name}: {size:,} bytes, 1/{text / size:.1f} of the JSONL's {text:,}")


def _timed(work: Callable[[], Trace]) -> tuple[float, Trace]:
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


if __name__ == "__main__":
    main()
