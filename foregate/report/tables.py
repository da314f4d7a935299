"""Tables that nobody sorts, as HTML: the facts of a trace. Escapes all text."""

from collections.abc import Iterable, Mapping
from html import escape

from foregate.description import Description
from foregate.facts import facts


def facts_table(described: Description) -> str:
    """Facts, provenance and what must be known about the recording."""
    rows = [_fact(name, value, doubtful=name == "trust" and described.doubtful) for name, value in facts(described)]
    source = described.provenance
    for name, values in (("versions", source.versions), ("settings", source.settings)):
        if values:
            rows.append(_fact(name, _listed(values)))
    notes = "".join(f"<li>{escape(note)}</li>" for note in source.notes)
    shown = f'<h3>Notes on the recording</h3><ul class="notes">{notes}</ul>' if notes else ""
    return _table("facts", rows) + shown


def pairs_table(label: str, pairs: Iterable[tuple[str, str]]) -> str:
    """Names and what they are."""
    return _table(label, [_fact(name, value) for name, value in pairs])


def scrolled(label: str, table: str) -> str:
    """A table that may be wider than the page; keys can scroll it."""
    return f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(label)}">{table}</div>'


def _listed(values: Mapping[str, object]) -> str:
    """Names and values, also where a value holds some itself."""
    parts = [f"{k} ({_listed(v)})" if isinstance(v, Mapping) else f"{k} {v}" for k, v in values.items()]
    return ", ".join(parts)


def _table(label: str, rows: Iterable[str]) -> str:
    return scrolled(label, f'<table class="facts"><tbody>{"".join(rows)}</tbody></table>')


def _fact(name: str, value: str, *, doubtful: bool = False) -> str:
    mark = ' class="doubtful"' if doubtful else ""
    return f'<tr{mark}><th scope="row">{escape(name)}</th><td>{escape(value)}</td></tr>'
