"""A description's facts as short phrases, for a terminal and for a page alike. No statistics, no layout."""

from foregate.description import Description

LISTED = 8  # data sets and duplicates to name; all are in the description itself


def facts(described: Description) -> list[tuple[str, str]]:
    """The facts of a trace, as (name, value) pairs."""
    spec, source = described.spec, described.provenance
    sets = [f"{d.name} ({d.prompts:,} prompts, {d.tokens:,} tokens)" for d in described.datasets[:LISTED]]
    hidden = len(described.datasets) - len(sets)
    return [
        ("model", f"{spec.model} ({spec.stack})"),
        ("routing", f"{spec.num_layers} mixture layers, {spec.top_k} of {spec.num_experts} experts"),
        ("model's layers", _spans(spec.layer_ids)),
        ("tokens", f"{described.tokens:,} ({described.prefill:,} prefill, {described.decode:,} decode)"),
        ("prompts", f"{described.prompts:,}; {_duplicates(described)}"),
        ("data sets", "; ".join(sets) + (f"; and {hidden} more" if hidden else "")),
        ("forward passes", f"{described.steps:,}"),
        ("token ids", "known" if described.has_tokens else "not all known"),
        ("gate weights", "recorded" if described.has_weights else "not in the source"),
        ("incomplete cells", _incomplete(described)),
        ("source", f"{source.format}: {', '.join(source.source)}"),
        ("trust", described.trust()),
    ]


def _duplicates(described: Description) -> str:
    if not described.duplicates:
        return "no duplicates"
    pairs = ", ".join(f"{a} = {b}" for a, b in described.duplicates[:LISTED])
    more = ", ..." if len(described.duplicates) > LISTED else ""
    return f"{len(described.duplicates):,} repeat an earlier one ({pairs}{more})"


def _incomplete(described: Description) -> str:
    if not described.incomplete_cells:
        return f"none of {described.cells:,} (token, layer) cells"
    share = described.incomplete_cells / max(described.cells, 1)
    return f"{described.incomplete_cells:,} of {described.cells:,} (token, layer) cells ({share:.1%})"


def _spans(layers: tuple[int, ...]) -> str:
    """1, 2, 3, 7 -> "1-3, 7"."""
    spans: list[list[int]] = []
    for layer in layers:
        if spans and layer == spans[-1][-1] + 1:
            spans[-1][1:] = [layer]
        else:
            spans.append([layer])
    return ", ".join("-".join(str(end) for end in span) for span in spans)
