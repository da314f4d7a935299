"""Where prompts come from: a user's file, a copy of a known data set, or the `datasets` library. No tokens here."""

import gzip
import json
import lzma
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foregate.errors import ChoiceError, SourceError, need

FIELDS = ("prompt", "question", "text")
GLUE_FIELDS = ("sentence", "sentence1", "premise", "question", "question1")


@dataclass(frozen=True)
class PromptText:
    """A prompt, and the name and data set that splits go by."""

    name: str
    dataset: str
    text: str


@dataclass(frozen=True)
class _Known:
    """A data set by name: how `datasets` calls it, and which fields make a prompt."""

    path: str
    config: str | None
    split: str
    fields: tuple[str, ...]


KNOWN = {
    "humaneval": _Known("openai/openai_humaneval", None, "test", ("prompt",)),
    "gsm8k": _Known("openai/gsm8k", "main", "test", ("question",)),
    "wikitext": _Known("Salesforce/wikitext", "wikitext-2-raw-v1", "validation", ("text",)),
    "squad": _Known("rajpurkar/squad", None, "validation", ("context", "question")),
}


def read_prompts(source: str, limit: int | None = None) -> list[PromptText]:
    """The prompts that `source` names, at most `limit`.

    source: a .txt or .jsonl file (also .gz and .xz); or humaneval, gsm8k, wikitext, squad, glue/TASK, which need the
    network; or NAME=FILE, a local copy of one of these. A text file holds one prompt a line; blank lines are passed
    over, and of WikiText the headings too. A JSON line holds its prompt in `prompt`, `question` or `text`, and may hold
    `name` and `dataset`.

    Raises: ChoiceError for an unknown name, SourceError for a file that is broken or empty.
    """
    if limit is not None and limit < 1:
        raise ChoiceError(f"--limit is {limit}; it must be at least 1")
    name, equals, path = source.partition("=")
    if equals and (name in KNOWN or name.startswith("glue/")):
        prompts = _from_file(Path(path), name)
    elif source in KNOWN or source.startswith("glue/"):
        prompts = _from_hub(source)
    elif Path(source).exists():
        prompts = _from_file(Path(source), None)
    else:
        known = ", ".join((*KNOWN, "glue/TASK"))
        raise ChoiceError(
            f"{source} is no file and no known set of prompts; give a .txt or .jsonl file, or one of {known}"
        )
    taken = [prompt for prompt, _ in zip(prompts, range(limit or 2**62), strict=False)]
    if not taken:
        raise SourceError(f"{source} holds no prompts")
    return taken


def _from_file(path: Path, dataset: str | None) -> Iterator[PromptText]:
    if not path.is_file():
        what = f"{path} is a folder" if path.is_dir() else f"there is no file {path}"
        raise SourceError(f"{what}; give a .txt or .jsonl file of prompts")
    kind = path.with_suffix("") if path.suffix in (".gz", ".xz") else path
    dataset = dataset or kind.stem
    if kind.suffix in (".jsonl", ".ndjson"):
        return _json_prompts(path, dataset)
    if kind.suffix == ".json":
        raise SourceError(f"{path} is JSON; write one object a line and call it .jsonl")
    return _text_prompts(_lines(path), dataset)


def _lines(path: Path) -> Iterator[str]:
    opener: Any = {".gz": gzip.open, ".xz": lzma.open}.get(path.suffix, open)
    try:
        with opener(path, "rt", encoding="utf-8") as file:
            yield from file
    except UnicodeDecodeError as error:
        raise SourceError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    except (EOFError, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise SourceError(f"{path} is cut off or not compressed as its name says; fetch it again") from error
    except OSError as error:
        raise SourceError(f"cannot read {path}: {error.strerror}") from error


def _text_prompts(lines: Iterable[str], dataset: str) -> Iterator[PromptText]:
    number = 0
    for line in lines:
        text = line.strip()
        if text and not (dataset == "wikitext" and text.startswith("=")):
            yield PromptText(f"{dataset}/{number}", dataset, text)
            number += 1


def _json_prompts(path: Path, dataset: str) -> Iterator[PromptText]:
    names: set[str] = set()
    for number, line in enumerate(_lines(path), start=1):
        if line.strip():
            prompt = _json_prompt(line, f"{path}, line {number}", dataset, number - 1)
            if prompt.name in names:
                raise SourceError(f"{path}, line {number}: the name {prompt.name!r} is used twice; names must differ")
            names.add(prompt.name)
            yield prompt


def _json_prompt(line: str, where: str, dataset: str, number: int) -> PromptText:
    try:
        values = json.loads(line)
    except json.JSONDecodeError as error:
        raise SourceError(f"{where} is not whole JSON ({error.msg} at column {error.colno})") from error
    if not isinstance(values, dict):
        raise SourceError(f'{where} is no JSON object; it must look like {{"prompt": "..."}}')
    fields = KNOWN[dataset].fields if dataset in KNOWN and len(KNOWN[dataset].fields) > 1 else ()
    names = (*FIELDS, *GLUE_FIELDS) if dataset.startswith("glue/") else FIELDS
    text = _joined(values, fields) or next((values[f] for f in names if isinstance(values.get(f), str)), None)
    if text is None or not text.strip():
        raise SourceError(f"{where} has no text in a field {', '.join(FIELDS[:-1])} or {FIELDS[-1]}")
    own = values.get("dataset", dataset)
    return PromptText(str(values.get("name", values.get("task_id", f"{own}/{number}"))), str(own), text)


def _joined(values: dict[str, Any], fields: tuple[str, ...]) -> str | None:
    texts = [values[f] for f in fields if isinstance(values.get(f), str)]
    return "\n".join(texts) if fields and len(texts) == len(fields) else None


def _from_hub(source: str) -> Iterator[PromptText]:
    datasets = need("datasets", "models")
    task = source.removeprefix("glue/")
    known = KNOWN.get(source) or _Known(
        "nyu-mll/glue", task, "validation_matched" if task == "mnli" else "validation", ()
    )
    try:
        rows = datasets.load_dataset(known.path, known.config, split=known.split)
    except Exception as error:  # the library raises a dozen unrelated kinds; all mean that the set cannot be had
        reason = (str(error).splitlines() or [type(error).__name__])[0][:160]
        raise SourceError(
            f"cannot get {source} ({known.path}) from the Hugging Face hub ({reason}); give a local copy: {source}=FILE"
        ) from error
    return _rows_prompts(rows, source, known)


def _rows_prompts(rows: Iterable[dict[str, Any]], source: str, known: _Known) -> Iterator[PromptText]:
    if source == "wikitext":
        yield from _text_prompts((row["text"] for row in rows), source)
        return
    for number, row in enumerate(rows):
        fields = known.fields or next(((f,) for f in GLUE_FIELDS if f in row), ())
        text = _joined(row, fields)
        if text is None:
            raise SourceError(f"{source}, row {number} has none of the fields {', '.join(fields or GLUE_FIELDS)}")
        yield PromptText(str(row.get("task_id", f"{source}/{number}")), source, text)
