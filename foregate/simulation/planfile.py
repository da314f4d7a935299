"""What `foregate plan` recommends, as a file that `foregate run` takes. Decides nothing.

JSON: {"format": 1, ...the fields of Plan}. A predictor that had to be fitted lies beside it, named relative to it.
"""

import json
import math
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from types import UnionType
from typing import Any, final, get_args, get_origin, get_type_hints

from foregate.components import build
from foregate.errors import ChoiceError, SourceError
from foregate.memory.eviction import eviction
from foregate.memory.prefetch import Nothing, prefetch
from foregate.predictors import PREDICTORS

FORMAT = 2


@final
@dataclass(frozen=True)
class Expected:
    """Simulated on prompts that took no part in the choice: tokens a second with its 95 % interval (None where there is
    none), and the same for reading on demand with LRU.
    """

    tokens_per_second: float
    low: float | None
    high: float | None
    on_demand: float


@final
@dataclass(frozen=True)
class Plan:
    """A setting of `foregate run`.

    model           whose trace it was found on
    layers, experts of it
    memory          as `foregate run --memory` takes it
    evict, prefetch of the memory package, as text
    predictor       whose guesses are read ahead: a component, or a file beside this one; None: nobody's
    distance        layers ahead, at most
    read_seconds, window_seconds, look_seconds
                    what the prefetch `budget` weighs: to read one expert, of a layer at work, of a predictor's answer
    provenance      how it was found: trace, profile, split, what was searched
    """

    model: str
    layers: int
    experts: int
    memory: str
    evict: str
    prefetch: str
    predictor: str | None
    distance: int
    read_seconds: float | None
    window_seconds: float | None
    look_seconds: float
    expected: Expected
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def wish(self) -> str | None:
        """What `foregate run --prefetch` would be given; None: nothing."""
        if self.predictor is None:
            return None
        return f"{self.predictor},{self.prefetch},distance={self.distance}"


def write(plan: Plan, path: Path) -> None:
    """A plan file: whole, or not at all. Raises: StorageError."""
    from foregate.traces.storage import replacing

    with replacing(path) as temporary:
        temporary.write_text(json.dumps({"format": FORMAT, **asdict(plan)}, indent=1) + "\n", encoding="utf-8")


def read(path: Path) -> Plan:
    """A plan file; its predictor's file is named from here.

    Raises: SourceError that names the field, for another version and for what no plan can say.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise SourceError(f"{path} is no JSON ({error}); make a plan with foregate plan TRACE -o {path}") from error
    if not isinstance(values, dict) or "format" not in values:
        raise SourceError(f"{path} is no plan; make one with foregate plan TRACE -o {path}")
    version = values.pop("format")
    if version != FORMAT:
        raise SourceError(f"{path} has plan format {version!r}; this foregate reads format {FORMAT}: plan anew")
    plan = _record(Plan, values, str(path), "")
    assert isinstance(plan, Plan)
    return _checked(plan, path)


def _checked(plan: Plan, path: Path) -> Plan:
    for name in ("layers", "experts", "distance"):
        if getattr(plan, name) < 1:
            raise SourceError(f"{path}: {name} is {getattr(plan, name)}; it must be 1 or more")
    seconds = ("read_seconds", plan.read_seconds), ("window_seconds", plan.window_seconds)
    for name, value in (*seconds, *asdict(plan.expected).items()):
        if value is not None and not (math.isfinite(value) and value > 0):
            raise SourceError(f"{path}: {name} is {value}; it must be a number above zero")
    if not (math.isfinite(plan.look_seconds) and plan.look_seconds >= 0):
        raise SourceError(f"{path}: look_seconds is {plan.look_seconds}; it must be a number, 0 or above")
    try:
        future = eviction(plan.evict).needs_future
        nothing = isinstance(prefetch(plan.prefetch), Nothing)
        fitted = plan.predictor is not None and plan.predictor.endswith(".npz")
        if plan.predictor is not None and not fitted:
            build(PREDICTORS, plan.predictor)
    except ChoiceError as error:
        raise SourceError(f"{path}: {error}") from error
    if future or (plan.predictor is None and not nothing):
        raise SourceError(f"{path} cannot be run: {plan.evict} with {plan.prefetch} needs what nobody tells; plan anew")
    if not fitted:
        return plan
    file = path.parent / str(plan.predictor)
    if not file.is_file():
        raise SourceError(f"{path} names the predictor {plan.predictor}, which does not lie beside it; plan anew")
    return replace(plan, predictor=str(file))


def _record(kind: type[Any], values: Any, source: str, path: str) -> Any:
    if not isinstance(values, dict):
        raise SourceError(f"{source}: {path or 'the plan'} is {values!r}; it must be an object")
    hints = get_type_hints(kind)
    prefix = f"{path}." if path else ""
    for name in (*values, *(f.name for f in fields(kind))):
        if name not in hints:
            raise SourceError(f"{source}: {prefix}{name} is no field of plan format {FORMAT}")
        if name not in values:
            raise SourceError(f"{source}: {prefix}{name} is missing")
    return kind(**{name: _value(hints[name], value, source, prefix + name) for name, value in values.items()})


def _value(hint: Any, value: Any, source: str, path: str) -> Any:
    if hint is Expected:
        return _record(Expected, value, source, path)
    if get_origin(hint) is UnionType:
        if value is None:
            return None
        hint = next(h for h in get_args(hint) if h is not type(None))
    plain = get_origin(hint) or hint
    right = (int, float) if plain is float else (plain,)
    if not isinstance(value, right) or isinstance(value, bool):
        raise SourceError(f"{source}: {path} is {value!r}; it must be of type {plain.__name__}")
    return plain(value)
