"""Search for the options of a predictor that know the validation prompts best: Optuna's TPE over its declared space,
hopeless trials stopped early. Never looks at the test prompts; how workers share a study is `trials`' business.

Source: TPE and the median rule as in "Optuna: A Next-generation Hyperparameter Optimization Framework" (Akiba et al.
2019).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from foregate.comparison import missing
from foregate.components import build, describe
from foregate.errors import ChoiceError, need
from foregate.evaluation import Tally, evaluate, merge
from foregate.predictors import PREDICTORS
from foregate.predictors.base import Predictor
from foregate.predictors.space import Choice, Options
from foregate.splits import Fold, split, without_duplicates
from foregate.traces.schema import Trace
from foregate.trials import DEFAULT, open_study, reachable, work

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial, Trial

METRICS = ("recall", "top1", "top2", "exact_set", "log_loss")
LOWER_IS_BETTER = ("log_loss",)
COMPONENT = "component"  # a trial's attribute: what it tried, as a user types it
RUNGS = ((25, slice(0, None, 4)), (50, slice(2, None, 4)), (100, slice(1, None, 2)))
"""% of the validation prompts that are asked, and which are added for it: parts are alike, as prompts of one data set
stand together.
"""


@dataclass(frozen=True)
class Question:
    """What every trial is asked. Two studies with other questions cannot be compared.

    predictor  as typed; options that it names are not searched
    metric     one of METRICS, the mean over layers; `budget` is for recall
    how, seed  the split (see `splits.split`); its validation part is asked
    """

    predictor: str
    metric: str = "recall"
    budget: int = 1
    distance: int = 1
    as_decode: bool = False
    how: str = "prompt"
    seed: int = 0

    @property
    def maximize(self) -> bool:
        """Whether more is better."""
        return self.metric not in LOWER_IS_BETTER

    @property
    def column(self) -> str:
        """The metric's name in a tally."""
        return f"recall@{self.budget}" if self.metric == "recall" else self.metric


@dataclass(frozen=True)
class Attempt:
    """One finished trial: its options as a user types them, and its score; None where it was stopped early."""

    number: int
    component: str
    score: float | None
    seconds: float
    default: bool


@dataclass(frozen=True)
class Tuned:
    """What a study has found so far. `default` is None while that trial has not finished."""

    question: Question
    study: Study
    prompts: int
    attempts: tuple[Attempt, ...]
    best: Attempt
    default: Attempt | None


def tune(
    trace: Trace,
    question: Question,
    *,
    trials: int,
    storage: str,
    study: str,
    heartbeat: int = 10,
    told: Callable[[Attempt], None] = lambda attempt: None,
) -> Tuned:
    """Work at a study until so many trials have finished, those of all its workers together.

    Raises: ChoiceError for a question that does not fit the trace or the study, StorageError for a lost database.
    """
    need("optuna", "train")
    space = free_space(question.predictor)
    fold = division(trace, question)
    _check(question, fold.train)
    with reachable(storage):
        shared = open_study(
            storage,
            study,
            settings=_settings(question, space, trace),
            default={name: describe(build(PREDICTORS, question.predictor))[name] for name in space},
            maximize=question.maximize,
            seed=question.seed,
            heartbeat=heartbeat,
        )
        work(
            shared,
            lambda trial: _objective(trial, question, space, fold),
            trials,
            heartbeat=heartbeat,
            told=lambda trial: told(_attempt(trial)),
        )
        return _found(shared, question, fold)


def free_space(text: str) -> dict[str, Choice]:
    """What may be searched of a predictor: its declared space without the options that the text fixes.

    Raises: ChoiceError if nothing is left.
    """
    name, _, options = text.partition(":")
    declared = type(build(PREDICTORS, text)).space
    fixed = {option.partition("=")[0] for option in options.split(",")}
    space = {key: choice for key, choice in declared.items() if key not in fixed}
    if not declared:
        tunable = ", ".join(sorted(n for n, kind in PREDICTORS.items() if kind.space))
        raise ChoiceError(f"{name} declares nothing to tune; choose one of {tunable}")
    if not space:
        raise ChoiceError(f"{text} fixes all that can be tuned ({', '.join(declared)}); leave some open")
    return space


def division(trace: Trace, question: Question) -> Fold:
    """The training and validation prompts (duplicates removed first).

    Raises: ChoiceError if the split has no validation part.
    """
    fold = next(split(without_duplicates(trace), question.how, seed=question.seed))
    if fold.validation is None or len(fold.validation) == 0:
        raise ChoiceError(f"a split by {question.how} leaves nothing to validate on; tune on --split prompt")
    return fold


def fit_best(trace: Trace, tuned: Tuned) -> Predictor:
    """The best options, fitted on the trace's training prompts as the trials were: its test prompts stay unseen."""
    fold = division(trace, tuned.question)
    return build(PREDICTORS, tuned.best.component, horizon=tuned.question.distance).fit(fold.train, fold.validation)


def _objective(trial: Trial, question: Question, space: Mapping[str, Choice], fold: Fold) -> float:
    values = {name: _suggest(trial, name, choice) for name, choice in space.items()}
    text = component(question.predictor, values)
    trial.set_user_attr(COMPONENT, text)
    predictor = build(PREDICTORS, text, horizon=question.distance)
    return score(predictor, question, fold, lambda step, value: _report(trial, step, value))


def score(predictor: Predictor, question: Question, fold: Fold, report: Callable[[int, float], None]) -> float:
    """Fit, and ask for the validation prompts.

    report  hears (epoch, score) of a predictor that learns in epochs; of others (% of the prompts, score so far),
            while some are left to ask
    """
    epochs: list[int] = []

    def heard(epoch: int, value: float) -> None:
        epochs.append(epoch)
        report(epoch, value if question.maximize else -value)

    predictor.on_epoch = heard
    predictor.fit(fold.train, fold.validation)
    predictor.on_epoch = None
    assert fold.validation is not None
    value = float("nan")
    for percent, tally in _growing(predictor, question, fold.validation):
        value = _mean(tally, question.column)
        if not epochs and len(tally.prompts) < len(fold.validation.prompts):
            report(percent, value)
    return value


def component(text: str, values: Mapping[str, Any]) -> str:
    """A predictor as a user types it: the text, and those values that are not what it has anyway."""
    has = describe(build(PREDICTORS, text))
    options = ",".join(f"{name}={_typed(value)}" for name, value in values.items() if has[name] != value)
    if not options:
        return text
    return f"{text},{options}" if ":" in text else f"{text}:{options}"


def _suggest(trial: Trial, name: str, choice: Choice) -> Any:
    if isinstance(choice, Options):
        return trial.suggest_categorical(name, choice.values)
    if choice.whole:
        return trial.suggest_int(name, int(choice.low), int(choice.high), log=choice.log)
    # Four digits are tried and can be typed again; more would only look exact.
    return float(f"{trial.suggest_float(name, choice.low, choice.high, log=choice.log):.4g}")


def _report(trial: Trial, step: int, value: float) -> None:
    optuna = need("optuna", "train")
    trial.report(value, step)
    if trial.should_prune() and not trial.user_attrs.get(DEFAULT):  # all others are compared with the default
        raise optuna.TrialPruned


def _growing(predictor: Predictor, question: Question, validation: Trace) -> Iterator[tuple[int, Tally]]:
    """The tally of a growing share of the prompts; the last is of all."""
    prompts = np.arange(len(validation.prompts))
    tallies: list[Tally] = []
    for percent, part in RUNGS:
        if len(prompts[part]):
            asked = validation.take_prompts(prompts[part].tolist())
            budgets = (question.budget,) if question.metric == "recall" else ()
            tallies.append(
                evaluate(predictor, asked, distance=question.distance, budgets=budgets, as_decode=question.as_decode)
            )
            yield percent, merge(tallies)


def _mean(tally: Tally, column: str) -> float:
    """Mean over the layers that were asked, as a leaderboard has it."""
    means = tally.mean(column)
    return float(means[np.isfinite(means)].mean())


def _typed(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value:.4g}" if isinstance(value, float) else str(value)


def _check(question: Question, trace: Trace) -> None:
    """Raise a ChoiceError for a question that the trace or the predictor cannot answer."""
    kind, spec = PREDICTORS[question.predictor.partition(":")[0]], trace.spec
    reason = missing(build(PREDICTORS, question.predictor), trace)
    if reason is not None:
        raise ChoiceError(f"{question.predictor} cannot be tuned here: {reason}")
    if question.metric not in METRICS:
        raise ChoiceError(f"there is no metric {question.metric!r}; choose one of {', '.join(METRICS)}")
    if question.metric == "log_loss" and not kind.probabilities:
        raise ChoiceError(f"{question.predictor} gives no probabilities, so it has no log_loss; tune another metric")
    if question.metric in ("top1", "top2") and trace.primary is None:
        raise ChoiceError(
            f"the trace does not say which expert is the primary; tune recall instead of {question.metric}"
        )
    for name, value, top in (
        ("distance", question.distance, spec.num_layers - 1),
        ("budget", question.budget, spec.num_experts),
    ):
        if not 1 <= value <= top:
            raise ChoiceError(f"{name} {value} does not fit this trace; choose between 1 and {top}")


def _settings(question: Question, space: Mapping[str, Choice], trace: Trace) -> dict[str, Any]:
    """All that must be alike for trials to be compared, as JSON can hold it."""
    digest = hashlib.blake2b(digest_size=8)
    for array in (trace.sequence, trace.position, trace.step, trace.token_id, trace.experts, trace.weights):
        if array is not None:
            digest.update(np.ascontiguousarray(array).tobytes())
    shown = {name: str(choice) for name, choice in space.items()}
    layers = ",".join(map(str, trace.spec.layer_ids))
    return {**asdict(question), "space": shown, "layers": layers, "trace": f"{trace.spec.model} {digest.hexdigest()}"}


def _attempt(trial: FrozenTrial) -> Attempt:
    return Attempt(
        number=trial.number,
        component=trial.user_attrs[COMPONENT],
        score=trial.value if trial.state.name == "COMPLETE" else None,
        seconds=trial.duration.total_seconds() if trial.duration else 0.0,
        default=bool(trial.user_attrs.get(DEFAULT)),
    )


def _found(study: Study, question: Question, fold: Fold) -> Tuned:
    assert fold.validation is not None
    attempts = tuple(_attempt(t) for t in study.get_trials(deepcopy=False) if t.state.name in ("COMPLETE", "PRUNED"))
    return Tuned(
        question=question,
        study=study,
        prompts=len(fold.validation.prompts),
        attempts=attempts,
        best=_attempt(study.best_trial),
        default=next((a for a in attempts if a.default), None),
    )
