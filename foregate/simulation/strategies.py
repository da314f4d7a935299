"""Ways to hold experts in too little memory, by name: who leaves, whose guesses are read ahead, which, and how far.
Descriptions only: nothing is fitted or simulated here.

Every one runs on the same planner in the same bytes and pays for every read, whatever its paper assumed. Where a method
needs a predictor or a cache that foregate has not, the nearest there is stands in for it, and `differs` says so.
"""

import re
from dataclasses import dataclass, replace
from typing import final

from foregate.components import build, meant, split_list
from foregate.errors import ChoiceError
from foregate.memory.eviction import EVICTION, eviction
from foregate.memory.prefetch import prefetch
from foregate.predictors import PREDICTORS
from foregate.predictors.base import HIDDEN
from foregate.spec import MoESpec

ORACLE = "oracle"
"""In a predictor's place: the future itself, which only a replay has."""
CHOSEN = "chosen"
"""In a predictor's place: the one that is asked for, or the first of the `USUAL` that the trace can feed."""
USUAL = ("bank", "memory", "counts")
"""Predictors that are fitted in seconds, the better first (see docs/leaderboard.md)."""


@final
@dataclass(frozen=True)
class Strategy:
    """One way.

    idea       what it is, a sentence
    source     paper or system
    evict      of the memory package, as text; also belady
    predictor  a component, ORACLE or CHOSEN; None: nobody is asked
    prefetch   of the memory package, as text; its number may be counted in a token's routed experts ("top:k", "top:2k")
               or in a layer's experts ("top:E/4")
    distance   layers ahead, at most
    differs    what the source does otherwise
    """

    idea: str
    source: str
    evict: str = "lru"
    predictor: str | None = None
    prefetch: str = "none"
    distance: int = 1
    differs: str = ""

    @property
    def knows_future(self) -> bool:
        """Nobody can run it: it is a bound."""
        return self.predictor == ORACLE or eviction(self.evict).needs_future

    def policy(self, spec: MoESpec) -> str:
        """`prefetch` for a model: "top:2k" as "top:12"."""
        return re.sub(r"^top:(?:n=)?(\d*)([kE])(?:/(\d+))?$", lambda m: f"top:{_count(m, spec)}", self.prefetch)


def _count(match: re.Match[str], spec: MoESpec) -> int:
    unit = {"k": spec.top_k, "E": spec.num_experts}[match[2]]
    return max(1, min(int(match[1] or 1) * unit // int(match[3] or 1), spec.num_experts))


ORIGINAL = 'the specMoE project ("Enhanced Pre-gated MoE for RTX 3090"), EXPERT_PREFETCHING_STRATEGIES.md, strategy '
IN_LAYERS = "it counts steps in tokens and looks at one layer's ids; here a step is a layer, as reads are"

STRATEGIES: dict[str, Strategy] = {
    "on-demand": Strategy(
        "read what the router asks for; the longest unused leaves",
        ORIGINAL + "A; plain LRU",
        differs="the original keeps one expert at a time; here it fills the same memory as all others",
    ),
    "lfu": Strategy("read what the router asks for; the least used leaves", "plain LFU", evict="lfu"),
    "belady": Strategy(
        "read what the router asks for; the one whose next use is furthest away leaves",
        "Belady, IBM Systems Journal 1966: the fewest reads that are possible on demand",
        evict="belady",
    ),
    "oracle": Strategy(
        "read ahead exactly what will be used, one to four layers ahead or not at all, whatever is fastest; the one "
        "whose next use is furthest away leaves",
        ORIGINAL + "B",
        evict="belady",
        predictor=ORACLE,
        prefetch="threshold:0.5",
        distance=4,
        differs="the original's prefetches bypass the cache's capacity and cost nothing; here they are read and hold "
        "slots",
    ),
    "look-ahead": Strategy(
        "counted transitions say which experts come in the next four layers; a quarter of each is read ahead",
        ORIGINAL + "C, multi-look ahead",
        predictor="cooccur",
        prefetch="top:E/4",
        distance=4,
        differs="the original also keeps patterns of three and of positions; " + IN_LAYERS,
    ),
    "top-k": Strategy(
        "keep and read ahead a layer's most used quarter of experts",
        ORIGINAL + "D, top-k frequency",
        evict="lfu-decay",
        predictor="popularity",
        prefetch="top:E/4",
        differs="frequencies to read ahead by are those of the training prompts, not faded; the cache's fade",
    ),
    "adaptive": Strategy(
        "transitions, frequency and recency mixed, each by how well it did; a quarter of the experts is read ahead",
        ORIGINAL + "E, intelligent adaptive",
        predictor="adaptive",
        prefetch="top:E/4",
        differs="trust is learned on training prompts, not while it runs; " + IN_LAYERS,
    ),
    "pre-gated": Strategy(
        "a layer's router input says at once which experts the next layer takes, and these are read",
        "Hwang et al., Pre-gated MoE, ISCA 2024",
        predictor="next-gate",
        prefetch="top:k",
        differs="the paper retrains the model so that the pre-gate is the routing and is never wrong; an untrained "
        "model's next router, asked a layer early, only guesses",
    ),
    "expertflow": Strategy(
        "the tokens alone say the whole path through the layers before the pass starts; the least expected leaves",
        "He et al., ExpertFlow, arXiv 2410.17954",
        evict="predicted",
        predictor="ngrams",
        prefetch="threshold:0.5",
        distance=4,
        differs="its path predictor is a transformer, here tables of token runs; its token scheduler, which regroups "
        "batches, has no counterpart",
    ),
    "moe-infinity": Strategy(
        "the sequence so far finds what was routed like it, and its likely experts of the next layers are read",
        "Xue et al., MoE-Infinity, arXiv 2401.14361",
        evict="lfu-decay",
        predictor="memory",
        prefetch="top:2k",
        distance=3,
        differs="it matches whole sequences' activation matrices against a collection of past ones; here the "
        "sequence's own earlier tokens vote by likeness, and what leaves is decided by faded use counts",
    ),
    "finemoe": Strategy(
        "a store of past tokens' expert maps, searched by meaning and by route, says what comes three layers on",
        "Yu et al., FineMoE (fMoE), EuroSys 2026, arXiv 2502.05370",
        evict="lfu",
        predictor="bank",
        prefetch="threshold:0.3",
        distance=3,
        differs="meaning is the token ids here, not an embedding; its width follows from likeness, here from a chance",
    ),
    "fate": Strategy(
        "the next layer's router on this layer's input says what to read; the cache is ARC",
        "Fang et al., Fate, arXiv 2502.12224",
        evict="arc",
        predictor="next-gate",
        prefetch="top:k",
        differs="its cache gives shallow layers more room, for which there is no option here; it also quantises",
    ),
    "foregate-cache": Strategy(
        "read what the router asks for; the one whose next use is expected furthest away leaves",
        "foregate: predicted eviction by the layer's habits, no guesses",
        evict="predicted",
    ),
    "foregate": Strategy(
        "the best predictor at hand tells the eviction, and what pays on this link is read ahead",
        "foregate: predicted eviction, a budget of expected benefit over cost",
        evict="predicted",
        predictor=CHOSEN,
        prefetch="budget:64GiB",
        distance=2,
    ),
}
"""Name -> what it is."""
BOUNDS = ("on-demand", "belady", "oracle")
"""In every table: the floor, and what no eviction and no predictor can be better than."""
LETTERS = {"a": "on-demand", "lru": "on-demand", "b": "oracle", "c": "look-ahead", "d": "top-k", "e": "adaptive"}
"""Other names, the original's letters among them."""


def chosen(text: str | None) -> dict[str, Strategy]:
    """The strategies of a list such as "lru,pre-gated,arc+bank+top:2k@3": names, or own ones made of an eviction, a
    predictor, a prefetch and a distance; the bounds stand first. None: all.

    Raises: ChoiceError.
    """
    names = list(STRATEGIES) if text is None else [LETTERS.get(n.lower(), n) for n in split_list(text)]
    found = {name: STRATEGIES[name] if name in STRATEGIES else own(name) for name in dict.fromkeys([*BOUNDS, *names])}
    return dict(sorted(found.items(), key=lambda item: item[0] not in BOUNDS))


def own(text: str) -> Strategy:
    """A strategy by its parts: "EVICT" or "EVICT+PREDICTOR+PREFETCH@DISTANCE", as "predicted+bank+threshold:0.6@2".

    Raises: ChoiceError.
    """
    parts, _, distance = text.partition("@")
    pieces = parts.split("+")
    alone = len(pieces) == 1 and pieces[0].partition(":")[0] not in EVICTION
    if alone or len(pieces) not in (1, 3) or (distance and not (distance.isdigit() and int(distance) > 0)):
        raise ChoiceError(
            f"there is no strategy {text!r}{meant(text, STRATEGIES)}; choose of {', '.join(STRATEGIES)}, or write an "
            "own one as predicted+bank+threshold:0.6@2"
        )
    made = Strategy("asked for by its parts", "the command line", evict=pieces[0])
    if len(pieces) == 3:
        made = replace(made, predictor=pieces[1], prefetch=pieces[2], distance=int(distance or 1))
    return checked(made, text)


def checked(strategy: Strategy, name: str) -> Strategy:
    """The strategy, if its parts exist. Raises: ChoiceError that names it."""
    try:
        eviction(strategy.evict)
        prefetch(strategy.policy(MoESpec(name, "decoder", (0,), 64, 6)))
        if strategy.predictor not in (None, ORACLE, CHOSEN) and not str(strategy.predictor).endswith(".npz"):
            build(PREDICTORS, str(strategy.predictor))
    except ChoiceError as error:
        raise ChoiceError(f"strategy {name}: {error}") from error
    return strategy


def wants_hidden(predictor: str | None) -> bool:
    """Whether a predictor reads hidden states, or may: of a file nobody knows before it is read."""
    if predictor in (None, ORACLE, CHOSEN):
        return False
    return str(predictor).endswith(".npz") or bool(build(PREDICTORS, str(predictor)).needs & HIDDEN)
