"""`foregate run`: write text with a model whose experts do not fit."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foregate.cli import completion
from foregate.cli.options import Device, Dtype, Model, Sample, Temperature, TrustRemoteCode

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from foregate.runtime.engine import Engine

    Below = Callable[[], RenderableType]


def command(
    model: Model,
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
            "previous,top:2; next-gate,budget:200MiB.  [default: read on demand]",
            autocompletion=completion.predictors,
        ),
    ] = None,
    evict: Annotated[
        str | None,
        typer.Option(
            help="lru, lfu, lfu-decay, arc, s3fifo, sieve, static or predicted.  [default: predicted]",
            autocompletion=completion.evictions,
        ),
    ] = None,
    speculation_mode: Annotated[
        str | None,
        typer.Option(
            help="none, layer_minus_1, multi_layer, pattern, adaptive or learnable.", autocompletion=completion.modes
        ),
    ] = None,
    plan: Annotated[
        Path | None,
        typer.Option(help="Of foregate plan: sets --memory, --evict and --prefetch where these are not given."),
    ] = None,
    profile: Annotated[
        str | None,
        typer.Option(
            help="Of foregate profile, or a datasheet's name: what --prefetch budget: weighs.",
            autocompletion=completion.machines,
        ),
    ] = None,
    store: Annotated[Path | None, typer.Option(help="Experts packed by foregate pack, for the model's own.")] = None,
    sample: Sample = False,
    temperature: Temperature = 1.0,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="With --sample.")] = 0,
    dtype: Dtype = "auto",
    device: Device = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads that compute.")] = None,
    record: Annotated[Path | None, typer.Option(help="Keep the routing of what ran, as a trace.")] = None,
    stats: Annotated[bool, typer.Option("--stats", help="Print what was read and waited for at the end.")] = False,
    live: Annotated[
        str | None,
        typer.Option(
            metavar="[terminal|web|both]",
            help="Watch slots, hits, stalls and reads: below the text, on a page for this machine's browser, or "
            "(--live alone) both.",
        ),
    ] = None,
    live_port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Of that page.  [default: one that is free]")
    ] = None,
    json: Annotated[
        Path | None, typer.Option(help="Write text, memory plan and stats here ('-' = standard output, alone).")
    ] = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Run a model whose experts do not fit: they stay on disk, and are read as the router asks, or before.

    The text is the one that the whole model would write. The memory plan is printed before anything is loaded.

    Example: foregate run models/tiny --memory 25% --prompt "def add(a, b):" --stats
    """
    # Threads that wait spinning would take the cores from those that read. Before torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from rich.console import Console

    from foregate.cli.terminal import alone, chatter, write_json
    from foregate.errors import ChoiceError, need
    from foregate.live.view import View
    from foregate.runtime.offload import offload
    from foregate.traces.storage import write_trace

    if chat == (prompt is not None):
        raise ChoiceError("give a --prompt, or --chat to talk")
    if chat and json is not None:
        raise ChoiceError("--json prints what one --prompt gave; leave it out to --chat")
    if sample and not 0 < temperature < math.inf:
        raise ChoiceError(f"--temperature is {temperature:g}; it must be above 0, or leave --sample out")
    _check_new(record)
    text = sys.stdin.read() if prompt == "-" else prompt
    if not chat and not text:
        raise ChoiceError("the prompt is empty; write something")
    torch = need("torch", "models")
    need("transformers", "models").utils.logging.disable_progress_bar()  # the status line says it
    if threads is not None:
        torch.set_num_threads(threads)
    torch.manual_seed(seed)
    told = chatter()
    # A speculation mode says who is asked, so that the plan does not.
    asked = prefetch if speculation_mode is None else prefetch or ""
    typed = {"memory": memory, "evict": evict, "prefetch": asked}
    choice: dict[str, Any] = {"do_sample": True, "temperature": temperature} if sample else {"do_sample": False}
    settings = _settings(model, plan, profile, typed)
    with ExitStack() as opened:
        view = opened.enter_context(View(model, live, live_port))
        with told.status("looking at the model") as status:

            def on_step(step: str) -> None:
                status.update(step)
                view.loading(step)

            engine = offload(
                model,
                host_memory=host_memory,
                speculation_mode=speculation_mode,
                **settings,
                store=store,
                dtype=dtype,
                device=device,
                trust_remote_code=trust_remote_code,
                on_plan=lambda plan: told.print(plan.text(), highlight=False, style="dim"),
                on_step=on_step,
            )
        opened.enter_context(engine)
        choice["max_new_tokens"] = max_new_tokens
        with view.watching(engine, _said(settings, speculation_mode)) as below:
            if chat:
                _talk(engine, choice, below)
            else:
                assert text is not None
                written = _write(engine, _tokens(engine, text), choice, None if alone(json) else below)[0]
        if record is not None:
            write_trace(engine.record(), record)
        if json is not None:
            found = {
                "model": model,
                "setting": _said(settings, speculation_mode),
                "text": written,
                "memory": None if engine.plan is None else engine.plan.to_json(),
                "stats": engine.stats(),
            }
            write_json(json, found)
        if stats and not alone(json):
            Console(stderr=True).print(_table(engine.stats()))


def _check_new(record: Path | None) -> None:
    from foregate.errors import ChoiceError

    if record is not None and record.exists():
        raise ChoiceError(f"{record} is there already; give another name to --record, or remove it")
    if record is not None and not record.absolute().parent.is_dir():
        raise ChoiceError(f"there is no folder {record.parent} for --record; make it first")


def _settings(model: str, plan: Path | None, profile: str | None, typed: dict[str, str | None]) -> dict[str, Any]:
    """What `offload` is told: what was typed, else what the plan says, else the defaults."""
    from foregate.errors import ChoiceError

    found: dict[str, Any] = {"memory": "25%", "evict": "predicted", "prefetch": None}
    if plan is not None:
        from foregate.simulation.planfile import read

        planned = read(plan)
        found = {"memory": planned.memory, "evict": planned.evict, "prefetch": planned.wish}
        found |= {"read_seconds": planned.read_seconds, "window_seconds": planned.window_seconds}
        found["look_seconds"] = planned.look_seconds
    if profile is not None:
        from foregate.simulation.pace import pace_of
        from foregate.simulation.profiles import find_profile
        from foregate.simulation.shapes import of_config

        pace = pace_of(find_profile(profile), of_config(model), on_disk=True)
        found |= {"read_seconds": pace.read, "window_seconds": pace.window}
        found["look_seconds"] = pace.look
    found |= {name: text or None for name, text in typed.items() if text is not None}
    if found.get("read_seconds") is None and any(p.startswith("budget") for p in (found["prefetch"] or "").split(",")):
        raise ChoiceError(
            "--prefetch budget: weighs what reading costs on this machine; measure it with `foregate profile "
            f"{model} -o machine.json`, and give --profile machine.json"
        )
    return found


def _said(settings: dict[str, Any], mode: str | None) -> str:
    """Of what `offload` is told: that which decides who is in a slot."""
    guesses = [f"prefetch {settings['prefetch']}"] * bool(settings["prefetch"])
    guesses += [f"speculation mode {mode}"] * (mode is not None)
    return ", ".join([f"evict {settings['evict']}", *(guesses or ["read on demand"])])


def _tokens(engine: Engine, text: str) -> Any:
    from foregate.errors import ChoiceError

    tokens = engine.tokenizer(text, return_tensors="pt")["input_ids"]
    if not tokens.numel():
        raise ChoiceError("the prompt has no tokens; write something")
    return tokens.to(engine.model.device)


def _write(engine: Engine, tokens: Any, choice: dict[str, Any], below: Below | None) -> tuple[str, Any]:
    """Write on after tokens [1, S], shown as it is written; the text, and the output of `generate`."""
    from transformers import TextStreamer

    pieces: list[str] = []
    with _shown(below) as show:

        def heard(piece: str, stream_end: bool = False) -> None:
            pieces.append(piece)
            show(piece)

        streamer = TextStreamer(engine.tokenizer, skip_prompt=True, skip_special_tokens=True)
        streamer.on_finalized_text = heard
        output = engine.generate(tokens, streamer=streamer, return_dict_in_generate=True, **choice)
    return "".join(pieces), output


@contextmanager
def _shown(below: Below | None) -> Iterator[Callable[[str], None]]:
    """Text on standard output as it comes; on a terminal, with what is drawn below it. None: nothing at all."""
    if below is None:
        yield lambda piece: None
        return
    from rich.console import Console

    from foregate.live.terminal import Screen

    console = Console()
    if not console.is_terminal:
        yield lambda piece: print(piece, end="", flush=True)
        print()
        return
    with Screen(console, below) as screen:
        yield screen.show


def _table(stats: dict[str, Any]) -> Table:
    from rich.table import Table

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


def _talk(engine: Engine, choice: dict[str, Any], below: Below) -> None:
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
        text, output = _write(engine, tokens, {**choice, **kept}, below)
        turns.append({"role": "assistant", "content": text})
        cache = getattr(output, "past_key_values", None)
        carried = output.sequences[0, :-1].tolist()  # the last token was never fed


def _line() -> str:
    try:
        return input("> " if sys.stdin.isatty() else "").strip()
    except EOFError:
        return ""
