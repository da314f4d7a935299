"""Predictors: estimators that say which experts a later layer will need. One registry, a plain dict."""

from foregate.predictors.base import Predictor
from foregate.predictors.counting import Chance, Cooccur, Popularity, Previous, Repeat
from foregate.predictors.gates import NextGate
from foregate.predictors.lookup import Hybrid, Rules, Tokens
from foregate.predictors.memory import Memory
from foregate.predictors.mlp import MLP
from foregate.predictors.trees import XGBoost

PREDICTORS: dict[str, type[Predictor]] = {
    "chance": Chance,
    "popularity": Popularity,
    "previous": Previous,
    "repeat": Repeat,
    "cooccur": Cooccur,
    "tokens": Tokens,
    "rules": Rules,
    "hybrid": Hybrid,
    "memory": Memory,
    "next-gate": NextGate,
    "xgboost": XGBoost,
    "mlp": MLP,
}
BASELINES = ("chance", "popularity", "previous", "tokens")
"""In every leaderboard, whatever was asked for (where the trace holds what they need)."""
LEARNED = ("xgboost", "mlp")
"""Minutes of training: in a leaderboard only where they are named."""
