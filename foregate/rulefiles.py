"""Rule files and results as the Mixtral study's scripts write them, byte for byte. JSON in and out; nothing is counted.

A model of another shape than the study's has its layers and experts in the metadata; the study's files say neither.
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from foregate.errors import SourceError
from foregate.journeys import STUDY, STUDY_SHAPE
from foregate.rulebook import FULL_PATH, LEVELS, SKIPS, Level, LevelRules, Rulebook, Score
from foregate.traces.storage import replacing

TITLE = "Expert prediction rules for "
SKIPPING = "level5"
FLAT = re.compile(r"\((\d+(?:, \d+)+)\)")
PATH = re.compile(r"\((\d+), \((\d+(?:, \d+)*),?\)\)")


def write_rules(book: Rulebook, path: Path) -> None:
    """Write a rule file: whole, or not at all. A rule at a time, for there may be millions."""
    with replacing(path) as temporary, temporary.open("w") as out:
        for piece in _pieces(book):
            out.write(piece)


def read_rules(path: Path) -> Rulebook:
    """Read a rule file.

    Raises: SourceError that names the level and the rule that is wrong.
    """
    values = _object(path)
    metadata = values.pop("metadata", None)
    if not isinstance(metadata, dict) or not isinstance(metadata.get("training_files"), list):
        raise SourceError(f"{path} has no metadata.training_files; it is not a rule file, make one with `rules create`")
    model = str(metadata.get("description", "")).removeprefix(TITLE)
    study = STUDY_SHAPE if model == STUDY else (None, None)
    layers, experts = metadata.get("num_layers", study[0]), metadata.get("num_experts", study[1])
    if not isinstance(layers, int) or not isinstance(experts, int) or layers < 1 or experts < 1:
        raise SourceError(f"{path} does not say how many layers and experts its model has; make it again")
    rules = tuple(_read_level(path, level, entries, layers, experts) for level, entries in _levels(path, values))
    if not any(len(level.predictions) for level in rules):
        raise SourceError(f"{path} holds no rules; make it again with `rules create`")
    return Rulebook(model, layers, experts, tuple(map(str, metadata["training_files"])), rules)


def write_results(
    scores: Sequence[Score], book: Rulebook, rules: Path, tests: Sequence[str], path: Path, *, intervals: bool = False
) -> None:
    """Write an evaluation as the study does; `intervals` adds coverage and Wilson's interval, which it lacks."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(results(scores, book, rules, tests, intervals=intervals), indent=2))


def results(
    scores: Sequence[Score], book: Rulebook, rules: Path, tests: Sequence[str], *, intervals: bool
) -> dict[str, Any]:
    """An evaluation as plain JSON values."""
    best = best_of(scores)
    return {
        "metadata": {
            "timestamp": datetime.now().isoformat(),
            "rules_file": rules.name,
            "training_files": list(book.training_files),
            "test_files": list(tests),
            "num_test_files": len(tests),
        },
        "results": {score.level.name: _result(score, intervals) for score in scores},
        "best_level": best and {"name": best.level.name, "accuracy_percent": _percent(best.accuracy)},
    }


def best_of(scores: Sequence[Score]) -> Score | None:
    """The level with the highest accuracy, however few rows it covers; the first of equals."""
    return max((s for s in scores if s.total), key=lambda s: s.accuracy or 0.0, default=None)


def _result(score: Score, intervals: bool) -> dict[str, Any]:
    result: dict[str, Any] = {
        "correct": score.correct,
        "total": score.total,
        "accuracy_percent": _percent(score.accuracy),
        "vs_random": None if score.vs_random is None else round(score.vs_random, 2),
    }
    if intervals:
        low, high = score.interval or (None, None)
        result["coverage_percent"] = _percent(score.coverage)
        result["interval_percent"] = [_percent(low), _percent(high)]
    return result


def _percent(share: float | None) -> float | None:
    return None if share is None else round(share * 100, 2)


def _metadata(book: Rulebook) -> dict[str, Any]:
    metadata = {
        "training_files": list(book.training_files),
        "num_training_files": len(book.training_files),
        "description": TITLE + book.model,
    }
    if book.model != STUDY:
        metadata |= {"num_layers": book.num_layers, "num_experts": book.num_experts}
    return metadata


def _pieces(book: Rulebook) -> Iterator[str]:
    """The file's text: what `json.dumps(..., indent=2)` gives, a rule at a time."""
    yield '{\n  "metadata": ' + json.dumps(_metadata(book), indent=2).replace("\n", "\n  ")
    skips = [rules for rules in book.rules if rules.level.ahead > 1]
    for rules in book.rules:
        if rules in skips[1:]:
            continue
        name = SKIPPING if rules in skips else rules.level.name
        yield f',\n  "{name}": {{\n    "description": "{rules.level.description}",\n    "rules": '
        if rules in skips:
            yield from _block(map(_skip, skips), "    ")
        else:
            yield from _block(_entries(rules, "      "), "    ")
        yield "\n  }"
    yield "\n}"


def _skip(rules: LevelRules) -> str:
    return f'      "skip_{rules.level.ahead}": ' + "".join(_block(_entries(rules, " " * 8), "      "))


def _block(entries: Iterable[str], pad: str) -> Iterator[str]:
    """A JSON object that begins in a line of its own indentation `pad`."""
    opening = "{\n"
    for entry in entries:
        yield opening + entry
        opening = ",\n"
    yield "{}" if opening == "{\n" else f"\n{pad}}}"


def _entries(rules: LevelRules, pad: str) -> Iterator[str]:
    votes, owners = rules.votes, rules.owners
    assert votes is not None, "only rules that were counted here can be written"
    assert owners is not None
    starts, answers, counts = votes.starts.tolist(), votes.answers.tolist(), votes.counts.tolist()
    samples = votes.totals().tolist()
    path = rules.level is FULL_PATH
    for context, prediction, owner in zip(
        rules.contexts.tolist(), rules.predictions.tolist(), owners.tolist(), strict=True
    ):
        key = (context[0], tuple(e for e in context[1:] if e >= 0)) if path else tuple(context)
        span = range(starts[owner], starts[owner + 1])
        ballot = ",\n".join(f'{pad}    "{answers[s]}": {counts[s]}' for s in span)
        confidence = max(counts[s] for s in span) / samples[owner]
        yield (
            f'{pad}"{key}": {{\n{pad}  "prediction": {prediction},\n{pad}  "confidence": {confidence},\n'
            f'{pad}  "votes": {{\n{ballot}\n{pad}  }},\n{pad}  "samples": {samples[owner]}\n{pad}}}'
        )


def _object(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise SourceError(f"{path} does not exist; make it with `rules create`") from None
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise SourceError(f"{path} is not whole JSON ({error}); make it again with `rules create`") from error
    if not isinstance(values, dict):
        raise SourceError(f"{path} is not a rule file; make one with `rules create`")
    return values


def _levels(path: Path, values: dict[str, Any]) -> Iterator[tuple[Level, dict[str, Any]]]:
    """Each level that the file has, and its rules as JSON."""
    known = {level.name: level for level in LEVELS}
    for name, content in values.items():
        entries = content.get("rules") if isinstance(content, dict) else None
        if name not in known and name != SKIPPING:
            raise SourceError(f"{path} has an unknown level {name!r}; there are level1 to level5 and {FULL_PATH.name}")
        if not isinstance(entries, dict):
            raise SourceError(f"{path}: {name} has no rules; make the file again with `rules create`")
        if name != SKIPPING:
            yield known[name], entries
            continue
        for skip, inner in entries.items():
            level = known.get(name + "_" + skip.replace("_", ""))
            if level is None or not isinstance(inner, dict):
                raise SourceError(f"{path}: level5 has {skip!r}; it may have {', '.join(f'skip_{k}' for k in SKIPS)}")
            yield level, inner


def _read_level(path: Path, level: Level, entries: dict[str, Any], layers: int, experts: int) -> LevelRules:
    width = {"1": 2, "2": 3, "3": 4, "4": 3, "path": layers}[level.looks_up]
    contexts = np.full((len(entries), width), -1, dtype=np.int64)
    predictions = np.empty(len(entries), dtype=np.int64)
    for row, (key, entry) in enumerate(entries.items()):
        numbers = _numbers(level, key)
        prediction = entry.get("prediction") if isinstance(entry, dict) else None
        if numbers is None or not (level is FULL_PATH or len(numbers) == width):
            raise SourceError(f"{path}: {level.name} has the rule {key!r}; that is not a context of this level")
        if not isinstance(prediction, int) or not 0 <= prediction < experts:
            raise SourceError(f"{path}: {level.name}, rule {key}: prediction is not an expert in 0..{experts - 1}")
        if numbers[0] + level.ahead >= layers or max(numbers[1:]) >= experts:
            raise SourceError(
                f"{path}: {level.name}, rule {key} names a layer or expert that a model of {layers} layers x {experts} "
                "experts does not have; make the file again"
            )
        contexts[row, : len(numbers)] = numbers
        predictions[row] = prediction
    return LevelRules(level, contexts, predictions)


def _numbers(level: Level, key: str) -> list[int] | None:
    """Layer and experts of a rule's key; None if it is not one. A full path has an expert for each layer up to its."""
    match = (PATH if level is FULL_PATH else FLAT).fullmatch(key)
    if match is None:
        return None
    numbers = [int(n) for part in match.groups() for n in part.split(", ")]
    return None if level is FULL_PATH and len(numbers) != numbers[0] + 2 else numbers
