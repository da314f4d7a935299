"""All that one page is made of, in the order in which the page shows it. Reads no file, computes nothing."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import final

from foregate.evaluation import Measure
from foregate.hardware.profile import Profile
from foregate.predictors import BASELINES
from foregate.report import verdict
from foregate.report.board import Board, boards
from foregate.report.board_section import board_section
from foregate.report.names import short
from foregate.report.page import build_page, commands_section
from foregate.report.plan_section import plan_section
from foregate.report.profile_section import profile_section
from foregate.report.ran import Ran
from foregate.report.routing import Routing, routing_sections
from foregate.report.run_section import run_section
from foregate.report.section import Section
from foregate.report.simulated import Simulated
from foregate.report.simulation_section import simulation_section
from foregate.report.split_section import split_section
from foregate.report.transfer import Transfer
from foregate.report.transfer_section import transfer_section
from foregate.report.validation import Validation
from foregate.report.validation_section import validation_section
from foregate.simulation.planfile import Plan

NAMED = 2  # models in a title


@final
@dataclass(frozen=True)
class Results:
    """What commands wrote.

    routings     of traces
    measures     rows of `compare --json`, of any number of comparisons
    simulations  of `simulate --json`
    plans        files of `plan -o`
    runs         of `run --json`
    validations  of benchmarks/sim_vs_run.py
    profiles     of `profile -o`
    transfers    of benchmarks/memory_transfer.py
    baselines    names of the predictors that any other must beat
    """

    routings: Sequence[Routing] = ()
    measures: Sequence[Measure] = ()
    simulations: Sequence[Simulated] = ()
    plans: Sequence[Plan] = ()
    runs: Sequence[Ran] = ()
    validations: Sequence[Validation] = ()
    profiles: Sequence[Profile] = ()
    transfers: Sequence[Transfer] = ()
    baselines: Collection[str] = BASELINES

    @property
    def boards(self) -> list[Board]:
        """Rows that may be compared with each other, together."""
        return boards(self.measures, self.baselines)

    @property
    def title(self) -> str:
        """What the page is about, if nobody says."""
        models = [r.described.spec.model for r in self.routings]
        models += [b.trace for b in self.boards] + [s.trace for s in self.simulations] + [p.model for p in self.plans]
        names = list(dict.fromkeys(map(short, models)))
        if not names:
            ran = list(dict.fromkeys(short(r.model) for r in self.runs if r.model))
            return f"How {_listed(ran)} ran" if ran else "Measured by foregate"
        return f"What the routing of {_listed(names)} gives away"


def report_page(
    results: Results, shown: Sequence[Section], *, title: str | None = None, commands: Sequence[str] = ()
) -> str:
    """The whole page.

    shown     `sections` of the results
    commands  what to type to get it again

    Raises: ExtraError where plotly is not installed.
    """
    return build_page(
        [*shown, *commands_section(commands)],
        title=title or results.title,
        summary=summary(results),
        doubts=[text for r in results.routings for text in verdict.doubts(r.described)],
    )


def sections(results: Results) -> list[Section]:
    """Routing, predictors, memory and time: as the work goes."""
    found = results.boards
    ids = {r.described.spec.model: r.described.spec.layer_ids for r in results.routings}
    routing = [routing_sections(r, i, len(results.routings)) for i, r in enumerate(results.routings)]
    return [
        *(section for parts in routing for section in parts),
        *(board_section(board, i, ids.get(board.trace)) for i, board in enumerate(found)),
        *(split_section(group, i) for i, group in enumerate(_by_split(found))),
        *(simulation_section(one, i) for i, one in enumerate(results.simulations)),
        *(plan_section(one, i) for i, one in enumerate(results.plans)),
        *(run_section(one, i) for i, one in enumerate(results.runs)),
        *(validation_section(one, i) for i, one in enumerate(results.validations)),
        *(profile_section(one, i) for i, one in enumerate(results.profiles)),
        *(transfer_section(one, i) for i, one in enumerate(results.transfers)),
    ]


def summary(results: Results) -> list[str]:
    """The page's first lines: a verdict on each result, or what was recorded where there is none."""
    said = [verdict.of_board(board) for board in results.boards]
    said += [verdict.of_simulation(one) for one in results.simulations]
    said += [verdict.of_plan(one) for one in results.plans]
    said += [verdict.of_run(one) for one in results.runs]
    return said or [verdict.of_routing(r.described) for r in results.routings]


def _listed(models: Sequence[str]) -> str:
    return f"{len(models)} models" if len(models) > NAMED else " and ".join(models)


def _by_split(found: Sequence[Board]) -> list[list[Board]]:
    """Boards of one trace and one kind of replay under several splits."""
    groups: dict[tuple[str, str], list[Board]] = {}
    for board in found:
        groups.setdefault((board.trace, board.rows[0].replay), []).append(board)
    return [group for group in groups.values() if len(group) > 1]
