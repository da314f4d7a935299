"""Several processes that work at one Optuna study: opening its storage, starting trials until enough have finished,
taking over from workers that died. What a trial tries is its owner's business.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from foregate.errors import ChoiceError, StorageError, need

if TYPE_CHECKING:
    from optuna.storages import RDBStorage
    from optuna.study import Study
    from optuna.trial import FrozenTrial, Trial

    Objective = Callable[[Trial], float]

SETTINGS = "foregate"  # the study's attribute that holds what it was made for
DEFAULT = "default"  # marks the trial that tries a predictor as it comes
BEGUN = "begun"  # a trial's own number, once its worker's signs of life have begun
SILENCE = 6  # signs of life that may fail to come before a worker counts as dead
RETRIES = 2  # a trial whose worker died is tried again so often: it may be what kills them
PATIENCE = 5.0  # seconds for another worker to finish making a study
WARMUP = 3  # epochs before a trial may be stopped
STARTUP = 5  # trials that run to their end before others are compared with them


class Superfluous(Exception):  # noqa: N818 - no error: another worker was faster
    """This trial is one more than were asked for."""


def open_study(
    url: str,
    name: str,
    *,
    settings: Mapping[str, Any],
    default: Mapping[str, Any],
    maximize: bool,
    seed: int,
    heartbeat: int,
) -> Study:
    """The study of that name: a new one whose first trial is `default`, or the one that was made for the same settings.

    seed       of a new study's sampler; workers that join draw their own
    heartbeat  seconds between a worker's signs of life

    Raises: StorageError where the database does not answer, ChoiceError if the study was made for other settings.
    """
    optuna = need("optuna", "train")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage = _connect(url, heartbeat)
    pruner = optuna.pruners.MedianPruner(n_startup_trials=STARTUP, n_warmup_steps=WARMUP)
    direction = "maximize" if maximize else "minimize"
    try:
        sampler = optuna.samplers.TPESampler(seed=seed)
        study: Study = optuna.create_study(
            storage=storage, study_name=name, direction=direction, sampler=sampler, pruner=pruner
        )
    except optuna.exceptions.DuplicatedStudyError:
        sampler = optuna.samplers.TPESampler()
        study = optuna.load_study(storage=storage, study_name=name, sampler=sampler, pruner=pruner)
        _join(study, settings, default)
    else:
        _make(study, settings, default)
    return study


@contextmanager
def reachable(url: str) -> Iterator[None]:
    """Turn what a database says when it does not answer into a StorageError."""
    optuna = need("optuna", "train")
    sqlalchemy = need("sqlalchemy", "train")
    try:
        yield
    except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        raise StorageError(f"cannot use the storage {_shown(url)}: {_reason(error)}") from error


def work(
    study: Study,
    objective: Objective,
    wanted: int,
    *,
    heartbeat: int,
    told: Callable[[FrozenTrial], None] = lambda trial: None,
) -> None:
    """Run trials until `wanted` of them have finished, those of all workers together. Returns when they have: the last
    trials may be others', and if those die, this worker does them again.

    told  hears of each trial that this worker finished
    """
    watch = _Watch(SILENCE * heartbeat)
    while True:
        finished, running = _count(study, _states("COMPLETE", "PRUNED")), _count(study, _states("RUNNING"))
        if finished >= wanted:
            return
        if finished + running < wanted:
            _run_one(study, objective, wanted, told)
        else:
            time.sleep(min(1.0, heartbeat / 2))
            _fail_the_dead(study, watch)


def _run_one(study: Study, objective: Objective, wanted: int, told: Callable[[FrozenTrial], None]) -> None:
    optuna = need("optuna", "train")

    def attempt(trial: Trial) -> float:
        earlier = [t for t in _trials(study, _states("COMPLETE", "PRUNED", "RUNNING")) if t.number < trial.number]
        if len(earlier) >= wanted:
            raise Superfluous
        trial.set_user_attr("worker", os.getpid())
        trial.set_user_attr(BEGUN, trial.number)
        return objective(trial)

    def tell(_: Study, trial: FrozenTrial) -> None:
        if trial.state in _states("COMPLETE", "PRUNED"):
            told(trial)

    try:
        study.optimize(attempt, n_trials=1, catch=(Superfluous,), callbacks=[tell])
    except (ValueError, AssertionError, optuna.exceptions.UpdateFinishedTrialError) as error:
        if not _given_up(error):
            raise


def _given_up(error: BaseException | None) -> bool:
    """Whether `optimize` failed because its trial was no longer its own: this worker slept so long that another took it
    for dead. Optuna raises one of three errors then, by where it notices; what they say is in one of the chain.
    """
    while error is not None:
        if "Cannot tell a FAIL trial" in str(error) or type(error).__name__ == "UpdateFinishedTrialError":
            return True
        error = error.__context__
    return False


@dataclass
class _Watch:
    """Since when trials stand that show no sign of life at all: their worker died before its first."""

    grace: float
    since: dict[int, float] = field(default_factory=dict)

    def silent(self, trial: FrozenTrial) -> bool:
        """Whether the trial has not begun for longer than the grace."""
        if trial.user_attrs.get(BEGUN) == trial.number:
            return False
        return time.monotonic() - self.since.setdefault(trial.number, time.monotonic()) > self.grace


def _fail_the_dead(study: Study, watch: _Watch) -> None:
    """Give up the trials of dead workers; the storage's callback queues those again that had begun."""
    optuna = need("optuna", "train")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        optuna.storages.fail_stale_trials(study)
    for trial in _trials(study, _states("RUNNING")):
        if watch.silent(trial):
            study.tell(trial.number, state=optuna.trial.TrialState.FAIL, skip_if_finished=True)


def _connect(url: str, heartbeat: int) -> RDBStorage:
    """Open the database. Two workers that make its tables at once get in each other's way: the later tries again."""
    optuna = need("optuna", "train")
    sqlalchemy = need("sqlalchemy", "train")
    errors = sqlalchemy.exc
    for attempt in range(5):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                storage: RDBStorage = optuna.storages.RDBStorage(
                    url,
                    engine_kwargs={"connect_args": _timeout(url)},
                    heartbeat_interval=heartbeat,
                    grace_period=SILENCE * heartbeat,
                    heartbeat_stale_trial_callback=optuna.storages.RetryHeartbeatStaleTrialCallback(RETRIES),
                )
            return storage
        except ImportError as error:
            raise StorageError(f"no driver for the storage {_shown(url)}: pip install {error.name}") from error
        except RuntimeError as error:  # it was made by another optuna
            raise StorageError(f"cannot use the storage {_shown(url)}: {_reason(error)}") from error
        except (errors.IntegrityError, errors.OperationalError, errors.ProgrammingError) as error:
            made_meanwhile = isinstance(error, errors.IntegrityError) or "already exists" in str(error)
            if not made_meanwhile or attempt == 4:
                raise
            time.sleep(0.2 * (attempt + 1))
    raise AssertionError("the last attempt returns or raises")


def _timeout(url: str) -> dict[str, int]:
    """How long a database may take to answer: a locked file gets free again, an absent server never comes."""
    driver = need("sqlalchemy", "train").engine.make_url(url).drivername
    if driver.startswith("sqlite"):
        return {"timeout": 60}
    return {"connect_timeout": 10} if driver in ("postgresql", "postgresql+psycopg", "postgresql+psycopg2") else {}


def _make(study: Study, settings: Mapping[str, Any], default: Mapping[str, Any]) -> None:
    study.enqueue_trial(dict(default), user_attrs={DEFAULT: True})
    study.set_user_attr(SETTINGS, dict(settings))


def _join(study: Study, settings: Mapping[str, Any], default: Mapping[str, Any]) -> None:
    until = time.monotonic() + PATIENCE
    while SETTINGS not in study.user_attrs and time.monotonic() < until:
        time.sleep(0.1)
    found = study.user_attrs.get(SETTINGS)
    if found is None and not study.get_trials(deepcopy=False, states=_states("RUNNING", "COMPLETE", "PRUNED")):
        _make(study, settings, default)  # whoever began it died at once
    elif found is None:
        raise ChoiceError(f"study {study.study_name!r} was not made by foregate tune; choose another --study")
    else:
        _same(study.study_name, found, settings)


def _same(name: str, found: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    for key, value in settings.items():
        if found.get(key) != value:
            raise ChoiceError(
                f"study {name!r} was made with another {key} ({found.get(key)}, not {value}); choose another --study"
            )


def _states(*names: str) -> tuple[Any, ...]:
    states = need("optuna", "train").trial.TrialState
    return tuple(states[name] for name in names)


def _trials(study: Study, states: tuple[Any, ...]) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=states)


def _count(study: Study, states: tuple[Any, ...]) -> int:
    return len(_trials(study, states))


def _shown(url: str) -> str:
    """The address without its password."""
    sqlalchemy = need("sqlalchemy", "train")
    try:
        return str(sqlalchemy.engine.make_url(url).render_as_string(hide_password=True))
    except sqlalchemy.exc.ArgumentError:
        return "(not an address such as sqlite:///study.db or postgresql://user@host/name)"


def _reason(error: BaseException) -> str:
    """The database's own words, on one line."""
    while isinstance(error.__cause__, Exception) and getattr(error, "orig", None) is None:
        error = error.__cause__
    text = str(getattr(error, "orig", None) or error)
    return " ".join(text.split("\n(Background", maxsplit=1)[0].split())
