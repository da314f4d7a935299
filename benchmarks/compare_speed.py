"""How long, and with how much memory, `foregate compare` takes on the whole DeepSeek trace. Needs ../shared/data."""

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "shared" / "data" / "deepseek-v2-lite-chat" / "traces.tar.xz"
COUNTING = "chance,popularity,previous,repeat,cooccur,tokens"


def main() -> None:
    """Import, compare in a process of its own, print wall time and peak memory."""
    if not SOURCE.is_file():
        print("skipped: ../shared/data/deepseek-v2-lite-chat is not here")
        return
    foregate = str(Path(sys.executable).parent / "foregate")
    with tempfile.TemporaryDirectory() as folder:
        trace, rows = Path(folder) / "deepseek.parquet", Path(folder) / "rows.json"
        subprocess.run(
            [foregate, "import", "moe-beyond", str(SOURCE), "-o", str(trace)], check=True, capture_output=True
        )
        started = time.perf_counter()
        command = [foregate, "compare", str(trace), "--as", "decode", "--predictors", COUNTING, "--json", str(rows)]
        subprocess.run(command, check=True, capture_output=True)
        seconds = time.perf_counter() - started
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
        measures = json.loads(rows.read_text())
    print(f"compare {COUNTING} on DeepSeek: {seconds:.0f} s, peak {peak:.2f} GB, {len(measures):,} rows")


if __name__ == "__main__":
    main()
