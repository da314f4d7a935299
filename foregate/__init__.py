"""foregate learns which experts a Mixture-of-Experts model will need before its router says so, and proves how well.

    record -> describe -> predict -> compare

The names below are loaded when they are first used, so that `import foregate` costs nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from foregate.comparison import Comparison as Comparison
    from foregate.comparison import compare as compare
    from foregate.errors import ForegateError as ForegateError
    from foregate.evaluation import Measure as Measure
    from foregate.evaluation import evaluate as evaluate
    from foregate.history import History as History
    from foregate.history import Query as Query
    from foregate.history import Replay as Replay
    from foregate.predictors import PREDICTORS as PREDICTORS
    from foregate.predictors.base import Predictor as Predictor
    from foregate.predictors.storage import load as load_predictor  # noqa: F401
    from foregate.predictors.storage import save as save_predictor  # noqa: F401
    from foregate.runtime.engine import Engine as Engine
    from foregate.runtime.offload import offload as offload
    from foregate.spec import ExpertId as ExpertId
    from foregate.spec import MoESpec as MoESpec
    from foregate.traces.schema import Trace as Trace
    from foregate.traces.storage import read_trace as read_trace
    from foregate.traces.storage import write_trace as write_trace

__version__ = "0.1.0"

_HOMES = {
    "Comparison": "foregate.comparison",
    "Engine": "foregate.runtime.engine",
    "ExpertId": "foregate.spec",
    "ForegateError": "foregate.errors",
    "History": "foregate.history",
    "Measure": "foregate.evaluation",
    "MoESpec": "foregate.spec",
    "PREDICTORS": "foregate.predictors",
    "Predictor": "foregate.predictors.base",
    "Query": "foregate.history",
    "Replay": "foregate.history",
    "Trace": "foregate.traces.schema",
    "compare": "foregate.comparison",
    "evaluate": "foregate.evaluation",
    "load_predictor": "foregate.predictors.storage:load",
    "offload": "foregate.runtime.offload",
    "read_trace": "foregate.traces.storage",
    "save_predictor": "foregate.predictors.storage:save",
    "write_trace": "foregate.traces.storage",
}
__all__ = sorted(_HOMES)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'foregate' has no attribute {name!r}")
    module, _, attribute = _HOMES[name].partition(":")
    return getattr(importlib.import_module(module), attribute or name)
