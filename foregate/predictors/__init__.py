"""Predictors: estimators that say which experts a later layer will need. One registry, a plain dict."""

from foregate.predictors.base import Predictor
from foregate.predictors.counting import Chance, Cooccur, Popularity, Previous, Repeat
from foregate.predictors.counts import Counts
from foregate.predictors.fusion.fusion import Fusion
from foregate.predictors.fusion.online import Online
from foregate.predictors.hidden.gates import NextGate
from foregate.predictors.hidden.gating import Gating
from foregate.predictors.hidden.preattention import PreAttention
from foregate.predictors.hidden.probe import Probe
from foregate.predictors.interlayer.interlayer import Augmented, Interlayer, Multiscale
from foregate.predictors.lookup import Hybrid, Rules, Tokens
from foregate.predictors.memory.bank import Bank
from foregate.predictors.memory.memory import Memory
from foregate.predictors.mixing.blend import Blend
from foregate.predictors.mixing.calibrated import Calibrated
from foregate.predictors.mixing.ensemble import Ensemble
from foregate.predictors.modes import Adaptive, MultiLayer
from foregate.predictors.ngrams import NGrams
from foregate.predictors.study.mlp import MLP
from foregate.predictors.study.trees import XGBoost

PREDICTORS: dict[str, type[Predictor]] = {
    "chance": Chance,
    "popularity": Popularity,
    "previous": Previous,
    "repeat": Repeat,
    "multi-layer": MultiLayer,
    "cooccur": Cooccur,
    "adaptive": Adaptive,
    "counts": Counts,
    "tokens": Tokens,
    "ngrams": NGrams,
    "rules": Rules,
    "hybrid": Hybrid,
    "memory": Memory,
    "bank": Bank,
    "fusion": Fusion,
    "online": Online,
    "next-gate": NextGate,
    "pre-attention": PreAttention,
    "probe": Probe,
    "gating": Gating,
    "xgboost": XGBoost,
    "mlp": MLP,
    "ensemble": Ensemble,
    "blend": Blend,
    "calibrated": Calibrated,
    "interlayer": Interlayer,
    "multiscale": Multiscale,
    "augmented": Augmented,
}
BASELINES = ("chance", "popularity", "previous", "tokens")
"""In every leaderboard, whatever was asked for (where the trace holds what they need)."""
LEARNED = (
    "fusion",
    "online",
    "xgboost",
    "mlp",
    "pre-attention",
    "probe",
    "gating",
    "interlayer",
    "multiscale",
    "augmented",
    "ensemble",
    "blend",
    "calibrated",
)
"""Minutes of training: in a leaderboard only where they are named."""
