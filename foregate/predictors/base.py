"""What every predictor is. The interface only: no state, no implementation."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import ClassVar, Literal, Self

from foregate.arrays import Bool, Float32
from foregate.history import Query
from foregate.predictors.session import Session
from foregate.predictors.space import Choice
from foregate.traces.schema import Trace

Need = Literal["token_id", "ranked", "weights", "hidden", "residual"]
HIDDEN: frozenset[Need] = frozenset({"hidden", "residual"})
"""What `read_trace(..., hidden=False)` leaves on disk."""


class Predictor(ABC):
    """Scores the experts of a layer that has not been routed yet.

    An implementation is a final dataclass: the constructor stores, `fit` learns and returns self, learned attributes
    end in `_` and are numpy arrays, dicts of arrays by name, or a tuple of fitted predictors, so that any predictor can
    be saved and loaded.
    """

    probabilities: ClassVar[bool]
    """Scores are non-negative and sum to one over experts: the share of the routed set expected on each."""

    @property
    @abstractmethod
    def needs(self) -> frozenset[Need]:
        """What a trace must hold for this predictor to work at all; an implementation's plain ClassVar, or for one that
        holds others, what these need.
        """

    space: ClassVar[Mapping[str, Choice]] = {}
    """The constructor's values that `tune` may search, and where; each range holds the default."""

    on_epoch: Callable[[int, float], None] | None = None
    """Who learns in epochs tells `on_epoch(epoch, validation score)` after each, from 1, higher = better; what it
    raises stops `fit`. None: nobody listens.
    """

    session: Session | None = None
    """Who trains in torch keeps checkpoints and a learning curve there; None: nobody asks for them."""

    @abstractmethod
    def fit(self, trace: Trace, validation: Trace | None = None) -> Self:
        """Learn from a trace; `validation` may be used to choose, never to count.

        Only `trace.answers_at(layer)` may be learned as an answer.
        """

    @abstractmethod
    def predict(self, query: Query) -> Float32:
        """Scores [N, E], higher = sooner needed; ties are broken by the lower expert id.

        Row n depends on its own token and routed sets and on the first `seen[n]` tokens of the past, nothing else.
        """

    @abstractmethod
    def covers(self, query: Query) -> Bool:
        """[N] whether the predictor's own mechanism answers the row, rather than its back-off."""
