"""Whose guesses are read ahead: from the text that a user gives to a predictor that can be asked. Asks nobody."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np

from foregate import components
from foregate.errors import ChoiceError, need
from foregate.history import History
from foregate.memory.prefetch import PREFETCH
from foregate.models import next_gate_tables
from foregate.predictors import PREDICTORS
from foregate.predictors.base import HIDDEN, Predictor
from foregate.predictors.hidden.gates import NextGate
from foregate.predictors.speculation import LEARNABLE, SPECULATION_MODES, speculator
from foregate.predictors.storage import load
from foregate.runtime.loading import HollowModel
from foregate.spec import MoESpec
from foregate.traces.schema import Provenance, Trace

NEED_CHANCES = ("threshold", "budget", "predicted")
DEFAULT_POLICY = "threshold:0.5"
UNTAUGHT = ("chance", "previous", "repeat", "multi-layer")
"""Predictors that look back only: all they learn is a frequency to fill up with, and without a trace that is even."""


@final
@dataclass(frozen=True)
class Wish:
    """What `--prefetch` says.

    predictor  a predictor's file, a component such as "next-gate", a speculation mode, or a fitted predictor itself;
               None: nobody is asked
    policy     of the planner, as text
    distance   layers ahead, at most
    """

    predictor: str | Predictor | None = None
    policy: str = "none"
    distance: int = 1

    @classmethod
    def of(cls, text: str | None, mode: str | None = None, fitted: Predictor | None = None) -> "Wish":
        """Read "probe.npz,threshold:0.6,distance=2"; each part may be left out. `mode` is a speculation mode.

        Raises: ChoiceError for what makes no sense.
        """
        distance, named, policy = 1, [], ""
        for piece in components.split_list(text or ""):
            options = piece.split(",")
            for option in [o for o in options if o.startswith("distance=")]:
                options.remove(option)
                distance = _distance(option.removeprefix("distance="))
            rest = ",".join(options)
            if rest.partition(":")[0] in PREFETCH:
                policy = rest
            elif rest:
                named.append(rest)
        if mode is not None and mode not in SPECULATION_MODES:
            raise ChoiceError(f"there is no speculation mode {mode!r}; choose one of {', '.join(SPECULATION_MODES)}")
        if mode == LEARNABLE and not named:
            raise ChoiceError(f"speculation mode {LEARNABLE!r} needs a predictor file; name it in prefetch: probe.npz")
        asked: list[str | Predictor] = [*named, *([] if fitted is None else [fitted])]
        if mode not in (None, "none", LEARNABLE):
            asked.append(str(mode))
        if len(asked) > 1:
            raise ChoiceError(f"{' and '.join(map(str, asked))} cannot both be asked; name one predictor")
        if mode == "none" or (not asked and policy in ("", "none")):
            return cls()
        if not asked:
            raise ChoiceError(f"prefetch {text!r} names nobody who guesses; write for example previous,{policy}")
        return cls(asked[0], policy or DEFAULT_POLICY, distance)


def _distance(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise ChoiceError(f"distance={text} is no number of layers; give 1 or more")
    return int(text)


def find(wish: Wish, spec: MoESpec, tables: Callable[[], Any]) -> Predictor | None:
    """The predictor that is wished for, ready to answer.

    tables  the model's own norms and routers (`foregate.models.next_gate_tables`), for next-gate

    Raises: ChoiceError for one that must be fitted first; SourceError for a damaged file; ModelError where next-gate
    does not apply to the model.
    """
    text = wish.predictor
    if text is None or isinstance(text, Predictor):
        return text
    if _is_file(text):
        return _answering(load(Path(text), spec), text, spec, wish.distance)
    made = _made(text, wish.distance)
    if isinstance(made, NextGate):
        made.gain_, made.router_, bias = tables()
        made.bias_ = np.zeros(made.router_.shape[:2], dtype=np.float32) if bias is None else bias
        made.frequency_ = np.full(made.router_.shape[:2], 1 / spec.num_experts, dtype=np.float32)
        return made
    return made.fit(_nothing(spec))


def refuse(wish: Wish, evict: str) -> None:
    """What `find` and `check` would refuse, as far as that can be said without a model. Raises: ChoiceError."""
    text = wish.predictor
    if isinstance(text, str):
        check(load(Path(text)) if _is_file(text) else _made(text, wish.distance), wish.policy, evict)


def _is_file(text: str) -> bool:
    return Path(text).suffix == ".npz" or Path(text).is_file()


def _made(text: str, distance: int) -> Predictor:
    """A component, or a speculation mode, that knows nothing yet. Raises: ChoiceError for one that must be fitted."""
    if text in SPECULATION_MODES:
        made = speculator(text, horizon=distance)
        assert made is not None
        name = str(SPECULATION_MODES[text]).partition(":")[0]
    else:
        made = components.build(PREDICTORS, text, horizon=distance)
        name = text.partition(":")[0]
    if name not in UNTAUGHT and not isinstance(made, NextGate):
        raise ChoiceError(
            f"{text} must be fitted before it can guess: foregate train makes a file of it, then prefetch FILE.npz"
        )
    return made


def _answering(predictor: Predictor, file: str, spec: MoESpec, distance: int) -> Predictor:
    """The predictor of a file, once it has answered for this model. Raises: ChoiceError if it does not."""
    horizon = getattr(predictor, "horizon", distance)
    if distance > horizon:
        raise ChoiceError(
            f"{file} learned to look {horizon} layers ahead, not {distance}; ask with distance={horizon}, or fit it "
            f"with horizon={distance}"
        )
    if predictor.needs & HIDDEN:  # its file says of which model it is: it cannot be asked without states
        return predictor
    history = History(spec)
    history.begin(np.zeros(1, dtype=np.int32))
    nothing = np.zeros((1, spec.top_k))
    history.observe(0, nothing.astype(np.int16), nothing.astype(np.float32))
    try:
        answers = [predictor.predict(history.query(target)).shape for target in range(1, spec.num_layers)]
    except (IndexError, ValueError, KeyError, AssertionError) as error:
        raise ChoiceError(f"{file} was fitted on another model than {spec.model}; fit it on this one") from error
    if any(shape != (1, spec.num_experts) for shape in answers):
        raise ChoiceError(f"{file} was fitted on another model than {spec.model}; fit it on this one")
    return predictor


def check(predictor: Predictor | None, policy: str, evict: str) -> None:
    """Raises: ChoiceError where a policy needs chances and the predictor gives an order only."""
    wants = [p for p in (policy.partition(":")[0], evict.partition(":")[0]) if p in NEED_CHANCES]
    if predictor is not None and not predictor.probabilities and wants:
        kind = next(name for name, kind in PREDICTORS.items() if kind is type(predictor))
        raise ChoiceError(
            f"{kind} says which expert comes first, not how likely it is, and {wants[0]} needs to know that; choose "
            "top:2, or a predictor of chances such as multi-layer"
        )


def wants_chances(policy: str, evict: str) -> bool:
    """Whether anybody listens to a predictor at all."""
    return policy.partition(":")[0] != "none" or evict.partition(":")[0] == "predicted"


def gate_tables(hollow: HollowModel, stack: str) -> Any:
    """`foregate.models.next_gate_tables` of a model whose experts are not there: they answer zeros meanwhile."""
    zeros_like = need("torch", "models").zeros_like

    def nothing(*args: Any, **kwargs: Any) -> Any:
        return zeros_like(args[0] if args else next(iter(kwargs.values())))

    modules = [module for layer in hollow.layers for module in layer.experts]
    before = [vars(module).get("forward") for module in modules]
    try:
        for module in modules:
            module.forward = nothing
        return next_gate_tables(hollow.model, stack)
    finally:
        for module, forward in zip(modules, before, strict=True):
            if forward is None:
                del module.forward
            else:
                module.forward = forward


def _nothing(spec: MoESpec) -> Trace:
    """A trace without tokens."""
    none = np.zeros(0, dtype=np.int32)
    routed = np.zeros((0, spec.num_layers, spec.top_k), dtype=np.int16)
    return Trace(spec, none, none, none, none, routed, None, None, (), Provenance((spec.model,), "nothing"))
