"""`foregate plan`: the setting to run with, found by simulation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from foregate.cli import completion
from foregate.cli.options import HostMemory, Jobs, Machine, Memory, Replay, Seed, Shape, written
from foregate.cli.staging import Staging, Words, facts, slots_of, staged

if TYPE_CHECKING:
    from foregate.simulation.breakeven import BreakEven
    from foregate.simulation.guesser import Guesser
    from foregate.simulation.plan import Search
    from foregate.simulation.planfile import Plan
    from foregate.simulation.rows import Row


OWN_PROMPTS = 40  # of the demo's
RUNNERS_UP = 8  # that a plan's file tells
OF_A_SETTING = ("evict", "predictor", "prefetch", "distance")
OF_A_ROW = ("strategy", "tokens_per_second", "low", "high", "hit_rate", "stall_share", "cold_precision", "knows_future")


def command(
    source: Annotated[
        Path, typer.Argument(help="A trace of the model's routing; or the model's folder, to record a short one first.")
    ],
    *,
    profile: Machine,
    memory: Memory = "25%",
    host_memory: HostMemory = None,
    model: Shape = None,
    prompts: Annotated[
        str | None,
        typer.Option(help="Of a folder: what to run it on, as foregate record takes it.  [default: 40 of our own]"),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Of a folder: tokens to write after each prompt.")] = 24,
    predictors: Annotated[
        str | None,
        typer.Option(
            help="Comma-separated components and .npz files to try.  [default: quick ones]",
            autocompletion=completion.predictors,
        ),
    ] = None,
    replay: Replay = "recorded",
    tokens: Annotated[
        int, typer.Option(min=0, help="Whole prompts until so many tokens, to choose on and to report on; 0 = all.")
    ] = 3000,
    seed: Seed = 0,
    jobs: Jobs = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Plan for foregate run --plan, JSON; a predictor beside it.")
    ] = None,
    json: Annotated[Path | None, written("the plan")] = None,
) -> None:
    """Find out who should leave, and whether reading ahead pays here: whose guesses, how many, how far.

    Settings are tried on validation prompts by simulation; the one that is chosen is reported on test prompts, once.
    A folder's model is run on some prompts first, in the memory given: a trace of your own prompts tells more.

    Example: foregate plan deepseek.parquet --as decode --profile machine.json --memory 25% -o plan.json
    """
    import tempfile
    from dataclasses import asdict

    from foregate.cli.terminal import alone, write_json

    with tempfile.TemporaryDirectory() as folder:
        trace = source
        if (source / "config.json").is_file():
            trace = Path(folder) / "trace.parquet"
            _record(source, prompts, max_new_tokens, memory, trace)
        words = Words([trace], profile, model, host_memory, "prompt", replay, tokens, seed)
        done = _planned(words, memory, predictors, jobs)
    plan = done.plan(memory, str(source))
    if output is not None:
        plan = _write(plan, done.guesser, output)
    if json is not None:
        write_json(json, asdict(plan))
    if alone(json):
        return
    show(plan, done)
    if output is not None:
        print(f"wrote {output}; next: foregate run MODEL --plan {output} --prompt ...")


@dataclass(frozen=True, eq=False)
class Done:
    """All that was found.

    guesser  who guesses in the recommended setting
    rows     of test prompts: the recommended setting, reading on demand with LRU, others
    """

    staging: Staging
    search: Search
    even: BreakEven
    guesser: Guesser
    rows: list[Row]

    def plan(self, memory: str, source: str) -> Plan:
        """As `foregate run` takes it."""
        from dataclasses import asdict

        from foregate.simulation.pace import pace_of
        from foregate.simulation.planfile import Expected, Plan
        from foregate.simulation.profiles import basis

        stage, words, best = self.staging.stage, self.staging.words, self.search.best.strategy
        pace = pace_of(stage.profile, stage.shape, on_disk=stage.host_slots is not None)
        chosen, on_demand = self.rows[:2]
        return Plan(
            model=stage.test.spec.model,
            layers=stage.shape.layers,
            experts=stage.shape.experts,
            memory=memory,
            evict=best.evict,
            prefetch=best.policy(stage.test.spec),
            predictor=best.predictor,
            distance=best.distance,
            read_seconds=pace.read,
            window_seconds=pace.window,
            look_seconds=chosen.look_seconds or 0.0,
            expected=Expected(chosen.tokens_per_second, chosen.low, chosen.high, on_demand.tokens_per_second),
            provenance={
                "source": source,
                "profile": stage.profile.name,
                "basis": basis(stage.profile),
                "how": "simulated",
                "replay": words.replay,
                "seed": words.seed,
                "settings_tried": len(self.search.trials),
                "gain_of_guesses_on_validation": self.search.gain,
                "break_even": asdict(self.even),
                "test_rows": [{name: getattr(row, name) for name in OF_A_ROW} for row in self.rows],
                "runners_up": [
                    {**{name: getattr(t.strategy, name) for name in OF_A_SETTING}, "tokens_per_second": t.speed}
                    for t in self.search.runners_up(RUNNERS_UP)
                ],
            },
        )


def _planned(words: Words, memory: str, predictors: str | None, jobs: int | None) -> Done:
    """Search, on validation prompts; then the report, on test prompts."""
    import os

    from foregate.cli.terminal import chatter, progress_bar
    from foregate.components import split_list
    from foregate.errors import ChoiceError
    from foregate.simulation.breakeven import break_even
    from foregate.simulation.plan import PREDICTORS_TRIED, search
    from foregate.simulation.strategies import wants_hidden

    asked = list(PREDICTORS_TRIED) if predictors is None else split_list(predictors)
    staging = staged(words, hidden=any(map(wants_hidden, asked)))
    slots = slots_of(memory, staging.stage.shape)
    with progress_bar("planning") as advance:
        found = search(staging.judged, slots, predictors=asked, jobs=jobs or os.cpu_count() or 1, advance=advance)
    if predictors is not None and found.left:
        raise ChoiceError(next(iter(found.left.values())))
    with chatter().status("reporting on test prompts"):
        even = break_even(staging.judged, slots, found.best.strategy.distance, seed=words.seed)
        return Done(staging, found, even, *_report(staging, found, (memory, slots)))


def _record(model: Path, prompts: str | None, max_new_tokens: int, memory: str, path: Path) -> None:
    """Run the model from slots, reading on demand, and keep its routing."""
    from foregate.cli.demo import PROMPTS
    from foregate.cli.terminal import progress_bar
    from foregate.runtime.offload import offload
    from foregate.traces.prompts import read_prompts
    from foregate.traces.storage import write_trace

    texts = read_prompts(str(PROMPTS), OWN_PROMPTS) if prompts is None else read_prompts(prompts)
    with progress_bar("recording") as advance, offload(str(model), memory=memory) as engine:
        for text in texts:
            engine.generate(text.text, max_new_tokens=max_new_tokens, do_sample=False)
            advance("recording", 1 / len(texts))
        write_trace(engine.record(), path)


def show(plan: Plan, done: Done) -> None:
    """The recommendation, and what it rests on."""
    from rich.console import Console

    from foregate.cli.simulate import table
    from foregate.cli.terminal import say

    console = Console()
    found, judged = done.search, done.staging.judged.test
    ahead = "" if plan.predictor is None else f" --prefetch {plan.wish}"
    console.print(f"recommended: --memory {plan.memory} --evict {plan.evict}{ahead}", style="bold", highlight=False)
    for line in (_expectation(plan), _reading_ahead(found), _break_even(done.even)):
        console.print(line, highlight=False)
    console.print(table(done.rows))
    say(
        f"{len(found.trials)} settings were tried on {len(judged):,} tokens of {len(judged.prompts)} validation "
        "prompts; the table is of test prompts.",
        *facts(done.staging),
        *(f"{name} was left out: {why}" for name, why in found.left.items()),
        console=console,
    )


def _expectation(plan: Plan) -> str:
    from foregate.cli.simulate import number

    told = plan.expected
    interval = "" if told.low is None or told.high is None else f" ({number(told.low)} to {number(told.high)})"
    times = told.tokens_per_second / told.on_demand
    return f"expected: {number(told.tokens_per_second)}{interval} tokens/s (simulated), {times:.2f} times LRU on demand"


def _reading_ahead(found: Search) -> str:
    if found.loud is None or found.gain is None:
        return "Reading ahead was not tried: no predictor could be asked."
    s = found.loud.strategy
    text = f"{s.predictor}, {s.prefetch}, {s.distance} layer{'s' if s.distance > 1 else ''} ahead, {s.evict}"
    if found.best is found.loud:
        return f"Asking a predictor pays here: it gains {found.gain:.1%} over the best without ({text})."
    told = f"{-found.gain:.1%} slower than" if found.gain < 0 else f"only {found.gain:.1%} faster than"
    return f"Prefetching does not pay here: the best found ({text}) is {told} the best without."


def _break_even(even: BreakEven) -> str:
    ahead = f"{even.distance} layer{'s' if even.distance > 1 else ''} ahead"
    best = max(speed for _, speed in even.points)
    if even.precision is None:
        return f"Break-even: not even perfect guesses {ahead} pay on this link ({best:.2f} times LRU on demand)."
    return (
        f"Break-even: guesses {ahead} pay from a cold precision of {even.precision:.0%} on; perfect ones reach "
        f"{best:.2f} times LRU on demand."
    )


def _report(staging: Staging, found: Search, memory: tuple[str, int]) -> tuple[Guesser, list[Row]]:
    """Rows of test prompts: the recommended one first; and who guesses in it."""
    from foregate.simulation.experiment import row_of
    from foregate.simulation.guesser import Guesser
    from foregate.simulation.strategies import STRATEGIES

    best = found.best.strategy
    settings = {"recommended": best, "on-demand": STRATEGIES["on-demand"]}
    if best.predictor is not None:
        settings["without guesses"] = found.quiet.strategy
    settings |= {name: STRATEGIES[name] for name in ("belady", "oracle")}
    guesser = Guesser(staging.stage, best.predictor, best.distance)
    rows = []
    for name, strategy in settings.items():
        same = strategy.predictor == best.predictor
        asked = guesser if same else Guesser(staging.stage, strategy.predictor, strategy.distance)
        rows.append(row_of(asked, name, strategy, memory, None))
    return guesser, rows


def _write(plan: Plan, guesser: Guesser, path: Path) -> Plan:
    """The plan's file, and the predictor's beside it."""
    from dataclasses import replace

    from foregate.predictors.storage import save
    from foregate.simulation.planfile import write

    if guesser.text is not None:
        file = path.with_name(f"{path.stem}.npz")
        save(guesser.predictor(), file, guesser.stage.test.spec)
        plan = replace(plan, predictor=file.name)
    write(plan, path)
    return plan
