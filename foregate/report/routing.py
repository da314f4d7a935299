"""What a page shows of one trace: what was recorded, which experts work, what follows what, token journeys."""

from dataclasses import dataclass
from pathlib import Path
from typing import final

from foregate.arrays import Int64
from foregate.cooccurrence import coactivation
from foregate.description import Description, describe
from foregate.report import expert_pairs, routing_figures
from foregate.report.names import short
from foregate.report.section import Section
from foregate.report.tables import facts_table
from foregate.report.token_journeys import Journeys, journeys_of, token_journeys
from foregate.report.token_texts import texts_of
from foregate.traces.schema import Trace

ROOM = 1_500_000  # bytes for matrices, of the 8 MB that a page may have; plotly itself takes 4.8
JOURNEYS_ROOM = 500_000


@final
@dataclass(frozen=True, eq=False)
class Routing:
    """A trace, counted; the trace itself may be forgotten.

    together  [L, E, E] tokens that used two experts of one layer
    """

    described: Description
    together: Int64
    journeys: Journeys


def routing_of(trace: Trace, *, tokenizer: Path | None = None, traces: int = 1) -> Routing:
    """Count a trace.

    tokenizer  for the text of tokens that the trace knows by their ids
    traces     of one page, which share its room

    Raises: SourceError, where `tokenizer` is none.
    """
    texts = texts_of(trace, tokenizer)
    together = coactivation(trace.experts, trace.spec.num_experts)
    return Routing(describe(trace), together, journeys_of(trace, texts, JOURNEYS_ROOM // traces))


def routing_sections(routing: Routing, number: int, traces: int = 1) -> list[Section]:
    """`number` tells the traces of a page apart; `traces` is how many there are."""
    described = routing.described
    spec = described.spec
    of = f" of {short(spec.model)}" if traces > 1 else ""
    room = ROOM // traces
    use = [routing_figures.load(described, f"load-{number}"), routing_figures.entropy(described, f"entropy-{number}")]
    if spec.top_k > 1:
        use.append(expert_pairs.together(described, routing.together, f"together-{number}", room // 2))
    use.append(routing_figures.reuse(described, f"reuse-{number}"))
    sections = [
        Section(f"trace-{number}", f"What was recorded: {short(spec.model)}", facts_table(described)),
        Section(f"use-{number}", f"Which experts work{of}", "", tuple(use)),
    ]
    if spec.num_layers > 1:
        matrix = f"transition-{number}"
        flow = (
            expert_pairs.transition(described, matrix, room // 2),
            expert_pairs.flows(described, f"flows-{number}", room // 2, matrix),
            routing_figures.information(described, f"information-{number}"),
        )
        sections.append(Section(f"flow-{number}", f"What follows what{of}", "", flow))
    journey = token_journeys(routing.journeys, f"journey-{number}")
    return [*sections, Section(f"journeys-{number}", f"Token journeys{of}", "", (journey,))]
