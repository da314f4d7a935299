"""The text of token ids, from the trace itself or from a tokenizer that is at hand; nothing from the network."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from foregate.errors import ExtraError, SourceError, need
from foregate.traces.schema import Trace

Texts = Callable[[int], str]
FILE = "tokenizer.json"


def texts_of(trace: Trace, tokenizer: Path | None) -> Texts | None:
    """What says the text of an id; None where nothing does.

    tokenizer  a tokenizer.json or its folder, looked at before what the trace names

    Raises: SourceError, where `tokenizer` is none. ExtraError, where it was asked for and its library is missing.
    """
    if trace.pieces is not None:
        pieces = trace.pieces
        return lambda token: pieces[token] if token >= 0 else "?"
    if tokenizer is not None:
        return _decoder(tokenizer if tokenizer.is_file() else tokenizer / FILE)
    folders = [Path(name) for name in (*trace.provenance.source, trace.spec.model)]
    found = next((folder / FILE for folder in folders if (folder / FILE).is_file()), None)
    if found is None or not trace.has_tokens:
        return None
    try:
        return _decoder(found)
    except ExtraError:  # the page then names ids, and says so
        return None


def quoted(text: str) -> str:
    """A token's text so that its spaces and line ends are seen."""
    shown = json.dumps(text, ensure_ascii=False)[1:-1].replace('\\"', '"')
    return f"\u201c{shown}\u201d"


def _decoder(file: Path) -> Texts:
    library: Any = need("tokenizers", "models")
    if not file.is_file():
        raise SourceError(f"{file} does not exist; --tokenizer takes a tokenizer.json or its folder")
    try:
        tokenizer = library.Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises nothing narrower
        raise SourceError(f"{file} is no tokenizer that can be read: {error}") from error
    return lambda token: str(tokenizer.decode([token], skip_special_tokens=False)) if token >= 0 else "?"
