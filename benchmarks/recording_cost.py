"""What recording costs: time to write tokens with the recorder over time without it, on the tiny model's shape.

Plain and recorded runs take turns, and the ratio is of their medians, so that a busy machine disturbs both alike.
Recording includes hooks, self-check and the file. Run: python benchmarks/recording_cost.py
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

from foregate.models import load
from foregate.traces.prompts import PromptText
from foregate.traces.record_transformers import Options, record
from foregate.traces.storage import read_trace


def tiny() -> Any:
    """A random model of the shape of models/tiny: 8 layers, 16 experts, top-2."""
    torch.manual_seed(0)
    config = transformers.MixtralConfig(
        vocab_size=2048, hidden_size=128, intermediate_size=128, num_hidden_layers=8, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=16, num_experts_per_tok=2, max_position_embeddings=2048,
        tie_word_embeddings=True, bos_token_id=0, eos_token_id=None, pad_token_id=2,
    )  # fmt: skip
    return transformers.MixtralForCausalLM(config).eval()


class Numbers:
    """A tokenizer for text that is numbers."""

    pad_token_id, eos_token_id = 2, None

    def __call__(self, text: str) -> dict[str, list[int]]:
        """Each number is a token id."""
        return {"input_ids": [int(word) for word in text.split()]}


def timed(run: Callable[[], object]) -> tuple[float, float]:
    """Seconds by the clock, and of processor time, which other programs disturb less."""
    wall, processor = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - wall, time.process_time() - processor


def plain(model: Any, prompts: list[PromptText], new: int, batch: int) -> None:
    """The same batches, written by transformers alone."""
    with torch.no_grad():
        for start in range(0, len(prompts), batch):
            ids = torch.tensor([Numbers()(p.text)["input_ids"] for p in prompts[start : start + batch]])
            mask = torch.ones_like(ids)
            model.generate(
                input_ids=ids, attention_mask=mask, max_new_tokens=new, do_sample=False, num_beams=1, pad_token_id=2
            )


def main() -> None:
    """Print medians and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--new", type=int, default=96)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--model", help="a folder, as models/tiny; without it a random model of that shape")
    parser.add_argument("--hidden", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = load(options.model)[0] if options.model else tiny()
    prompts = [
        PromptText(f"p/{i}", "p", " ".join(str(3 + (i * 97 + j * 31) % 2000) for j in range(32)))
        for i in range(options.prompts)
    ]
    how = Options(max_new_tokens=options.new, batch_size=options.batch, hidden=options.hidden)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "t.parquet"
        pairs: list[tuple[tuple[float, float], tuple[float, float]]] = []
        for turn in range(options.rounds + 1):
            without = timed(lambda: plain(model, prompts, options.new, options.batch))
            with_it = timed(lambda: record(model, Numbers(), prompts, file, how, overwrite=True))
            if turn:  # the first round warms up
                pairs.append((without, with_it))
        trace = read_trace(file)
    print(f"{len(trace)} tokens, batch {options.batch}, {options.rounds} rounds, {options.threads} thread(s)")
    for place, name in enumerate(("clock", "processor")):
        a, b = (statistics.median(pair[side][place] for pair in pairs) for side in (0, 1))
        ratio = statistics.median(pair[1][place] / pair[0][place] for pair in pairs)
        print(f"{name:9}: {a:.3f} s without, {b:.3f} s with; {b / a - 1:+.1%} of medians, {ratio - 1:+.1%} by pairs")
    checked = trace.provenance.settings["self_check"]
    print(f"self-check: {trace.provenance.self_check} over {checked['tokens']} of {checked['carried']} tokens")


if __name__ == "__main__":
    main()
