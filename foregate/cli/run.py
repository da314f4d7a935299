"""`foregate run`: write text with a model whose experts do not fit."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from foregate.runtime.engine import Engine


def command(
    model: Annotated[str, typer.Argument(help="Folder or Hugging Face name of a Mixture-of-Experts model.")],
    *,
    memory: Annotated[
        str | None,
        typer.Option(
            help="Fast memory for all of it, as 6GiB; or 25%: room for that share of the experts.  [default: 25%]"
        ),
    ] = None,
    host_memory: Annotated[
        str | None, typer.Option(help="Host memory for experts in front of the disk, as 16GiB or 50%.")
    ] = None,
    prompt: Annotated[str | None, typer.Option("--prompt", "-p", help="What to go on from; - reads it.")] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Talk: one line each, an empty one ends it.")] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens to write after each prompt.")] = 128,
    prefetch: Annotated[
        str | None,
        typer.Option(
            help="Whose guesses to read ahead, which, and how far: probe.npz,threshold:0.6,distance=2; "
            "previous,top:2; next-gate,budget:200MiB.  [default: read on demand]"
        ),
    ] = None,
    evict: Annotated[
        str | None,
        typer.Option(help="lru, lfu, lfu-decay, arc, s3fifo, sieve, static or predicted.  [default: predicted]"),
    ] = None,
    speculation_mode: Annotated[
        str | None, typer.Option(help="none, layer_minus_1, multi_layer, pattern, adaptive or learnable.")
    ] = None,
    plan: Annotated[
        Path | None,
        typer.Option(help="Of foregate plan: sets --memory, --evict and --prefetch where these are not given."),
    ] = None,
    profile: Annotated[
        str | None, typer.Option(help="Of foregate profile, or a datasheet's name: what --prefetch budget: weighs.")
    ] = None,
    store: Annotated[Path | None, typer.Option(help="Experts packed by foregate pack, for the model's own.")] = None,
    sample: Annotated[bool, typer.Option("--sample", help="Draw tokens instead of taking the likeliest.")] = False,
    temperature: Annotated[float, typer.Option(help="With --sample.")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="With --sample.")] = 0,
    dtype: Annotated[str, typer.Option(help="auto (as stored), float32, bfloat16 or float16.")] = "auto",
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...  [default: cuda where there is one]")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads that compute.")] = None,
    record: Annotated[Path | None, typer.Option(help="Keep the routing of what ran, as a trace.")] = None,
    stats: Annotated[bool, typer.Option("--stats", help="Print what was read and waited for at the end.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object: text, memory plan, stats.")] = False,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that comes with the model.")
    ] = False,
) -> None:
    """Run a model whose experts do not fit: they stay on disk, and are read as the router asks, or before.

    The text is the one that the whole model would write. The memory plan is printed before anything is loaded.

    Example: foregate run models/tiny --memory 25% --prompt "def add(a, b):" --stats
    """
    # Threads that wait spinning would take the cores from those that read. Before torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from foregate.errors import ChoiceError, need
    from foregate.runtime.offload import offload
    from foregate.traces.storage import write_trace

    if chat == (prompt is not None):
        raise ChoiceError("give a --prompt, or --chat to talk")
    if chat and as_json:
        raise ChoiceError("--json prints what one --prompt gave; leave it out to --chat")
    if sample and not 0 < temperature < math.inf:
        raise ChoiceError(f"--temperature is {temperature:g}; it must be above 0, or leave --sample out")
    if record is not None and record.exists():
        raise ChoiceError(f"{record} is there already; give another name to --record, or remove it")
    if record is not None and not record.absolute().parent.is_dir():
        raise ChoiceError(f"there is no folder {record.parent} for --record; make it first")
    text = sys.stdin.read() if prompt == "-" else prompt
    if not chat and not text:
        raise ChoiceError("the prompt is empty; write something")
    torch = need("torch", "models")
    need("transformers", "models").utils.logging.disable_progress_bar()  # the status line says it
    if threads is not None:
        torch.set_num_threads(threads)
    torch.manual_seed(seed)
    told = Console(stderr=True)
    # A speculation mode says who is asked, so that the plan does not.
    asked = prefetch if speculation_mode is None else prefetch or ""
    typed = {"memory": memory, "evict": evict, "prefetch": asked}
    choice: dict[str, Any] = {"do_sample": True, "temperature": temperature} if sample else {"do_sample": False}
    with told.status("looking at the model") as status:
        engine = offload(
            model,
            host_memory=host_memory,
            speculation_mode=speculation_mode,
            **_settings(model, plan, profile, typed),
            store=store,
            dtype=dtype,
            device=device,
            trust_remote_code=trust_remote_code,
            on_plan=lambda plan: told.print(plan.text(), highlight=False, style="dim"),
            on_step=status.update,
        )
    with engine:
        choice["max_new_tokens"] = max_new_tokens
        if chat:
            _talk(engine, choice)
        else:
            assert text is not None
            written = _write(engine, _tokens(engine, text), choice, quiet=as_json)[0]
        if record is not None:
            write_trace(engine.record(), record)
        if as_json and not chat:
            planned = None if engine.plan is None else engine.plan.to_json()
            assert engine.plan is not None
            answer = {"text": written, "memory": planned, "stats": engine.stats()}
            print(json.dumps(answer, indent=1))
        elif stats or as_json:
            told.print(_table(engine.stats()))


def _settings(model: str, plan: Path | None, profile: str | None, typed: dict[str, str | None]) -> dict[str, Any]:
    """What `offload` is told: what was typed, else what the plan says, else the defaults."""
    from foregate.errors import ChoiceError

    found: dict[str, Any] = {"memory": "25%", "evict": "predicted", "prefetch": None}
    if plan is not None:
        from foregate.simulation.planfile import read

        planned = read(plan)
        found = {"memory": planned.memory, "evict": planned.evict, "prefetch": planned.wish}
        found |= {"read_seconds": planned.read_seconds, "window_seconds": planned.window_seconds}
    if profile is not None:
        from foregate.simulation.pace import pace_of
        from foregate.simulation.profiles import find_profile
        from foregate.simulation.shapes import of_config

        pace = pace_of(find_profile(profile), of_config(model), on_disk=True)
        found |= {"read_seconds": pace.read, "window_seconds": pace.window}
    found |= {name: text or None for name, text in typed.items() if text is not None}
    if found.get("read_seconds") is None and any(p.startswith("budget") for p in (found["prefetch"] or "").split(",")):
        raise ChoiceError(
            "--prefetch budget: weighs what reading costs on this machine; measure it with `foregate profile "
            f"{model} -o machine.json`, and give --profile machine.json"
        )
    return found


def _tokens(engine: Engine, text: str) -> Any:
    from foregate.errors import ChoiceError

    tokens = engine.tokenizer(text, return_tensors="pt")["input_ids"]
    if not tokens.numel():
        raise ChoiceError("the prompt has no tokens; write something")
    return tokens.to(engine.model.device)


def _write(engine: Engine, tokens: Any, choice: dict[str, Any], *, quiet: bool = False) -> tuple[str, Any]:
    """Write on after tokens [1, S], shown as it is written; the text, and the output of `generate`."""
    from transformers import TextStreamer

    pieces: list[str] = []
    with _shown(engine, quiet) as show:

        def heard(piece: str, stream_end: bool = False) -> None:
            pieces.append(piece)
            show(piece)

        streamer = TextStreamer(engine.tokenizer, skip_prompt=True, skip_special_tokens=True)
        streamer.on_finalized_text = heard
        output = engine.generate(tokens, streamer=streamer, return_dict_in_generate=True, **choice)
    return "".join(pieces), output


@contextmanager
def _shown(engine: Engine, quiet: bool) -> Iterator[Callable[[str], None]]:
    """Text on standard output as it comes; on a terminal, a line of numbers below it."""
    if quiet:
        yield lambda piece: None
        return
    console = Console()
    if not console.is_terminal:
        yield lambda piece: print(piece, end="", flush=True)
        print()
        return
    line = ""
    with Live(console=console, auto_refresh=False, transient=True) as live:

        def show(piece: str) -> None:
            nonlocal line
            *whole, line = (line + piece).split("\n")
            for done in whole:
                live.console.print(Text(done))
            live.update(Group(Text(line), Text(_now(engine.stats()), style="dim")), refresh=True)

        yield show
    console.print(Text(line))


def _now(stats: dict[str, Any]) -> str:
    """The live line."""
    from foregate.cli.terminal import file_size

    decode = stats["decode"]
    speed = decode["tokens_per_second"]
    parts = ["writing the first token" if not speed else f"{speed:.2f} tokens/s"]
    for name, share in (("resident", decode["resident_share"]), ("read ahead", decode["in_time_share"])):
        if share is not None:
            parts.append(f"{name} {share:.0%}")
    parts.append(f"stalled {stats['stall']:.1f} s")
    parts.append(f"read {file_size(stats['bytes'])}")
    if stats["cold_precision"] is not None:
        parts.append(f"cold precision {stats['cold_precision']:.0%}")
    return "  ".join(parts)


def _table(stats: dict[str, Any]) -> Table:
    from foregate.cli.terminal import STYLE, file_size

    table = Table(title="what ran (measured)", title_justify="left", show_header=False, **STYLE)
    for kind in ("prefill", "decode"):
        part = stats[kind]
        if not part["demanded"]:
            continue
        speed = part["tokens_per_second"]
        table.add_row(f"{kind}", f"{part['tokens']} tokens" + (f", {speed:.2f} tokens/s" if speed else ""))
        table.add_row("  experts demanded", f"{part['demanded']:,}")
        table.add_row("  there already", f"{part['resident_share']:.1%}")
        table.add_row("  read ahead in time", f"{part['in_time_share']:.1%}")
        table.add_row("  stalled", f"{part['stall']:.2f} s")
        table.add_row("  read", file_size(part["bytes"]))
    table.add_row("guesses", f"{stats['guessed']:,} issued, {stats['late']:,} late, {stats['wasted']:,} wasted")
    if stats["cold_precision"] is not None:
        table.add_row("cold precision", f"{stats['cold_precision']:.1%}")
    table.add_row("predictor", f"{stats['predictor']:.2f} s")
    return table


def _talk(engine: Engine, choice: dict[str, Any]) -> None:
    """Turn by turn; what the model has read stays in its cache for as long as the text only grows."""
    from foregate.errors import ChoiceError

    if not getattr(engine.tokenizer, "chat_template", None):
        raise ChoiceError("the model's tokenizer has no chat template; use --prompt")
    turns: list[dict[str, str]] = []
    cache, carried = None, []
    while line := _line():
        turns.append({"role": "user", "content": line})
        tokens = engine.tokenizer.apply_chat_template(
            turns, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )["input_ids"].to(engine.model.device)
        grown = cache is not None and tokens[0, : len(carried)].tolist() == carried
        kept = {"past_key_values": cache} if grown else {}
        text, output = _write(engine, tokens, {**choice, **kept})
        turns.append({"role": "assistant", "content": text})
        cache = getattr(output, "past_key_values", None)
        carried = output.sequences[0, :-1].tolist()  # the last token was never fed


def _line() -> str:
    try:
        return input("> " if sys.stdin.isatty() else "").strip()
    except EOFError:
        return ""
