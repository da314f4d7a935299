"""One contestant, in a process of its own: opened, asked to write after one prompt, measured. Compares nothing.

    python offload_contestants.py TURN.json BLOCKS.json

A contestant of foregate is named by what it is given: "EVICT [PREFETCH] [int8|int4]", as in "lru", "predicted int4" or
"predicted bank,threshold:0.5,distance=2". In a prefetch, `bank`, `probe` and `pre-attention` are files of fitted
predictors, and `oracle` knows what will be routed, from a recording of the same prompt.
"""

import hashlib
import json
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

MMAP = "mmap"
AUTO = "accelerate auto"
EXPERTS = "accelerate experts on disk"
OTHERS = (MMAP, AUTO, EXPERTS)
PAIR = "resident"  # plain transformers and foregate with every expert in a slot, taking turns in one process
BITS = {"int16": 16, "int8": 8, "int4": 4}
"""Word of a contestant's name -> bits of the packed store that it reads."""
IN_PLACE = ""
ORACLE = "oracle"
WARM = 192  # tokens of the prompt that brings all experts in
TURNS = 3  # that each of the pair takes


@dataclass(frozen=True)
class Turn:
    """Who is to write what.

    name       of the contestant           budget   share of the experts
    round      number of the prompt        ids      its tokens           tokens  to write
    limit      bytes of memory; 0: no limit
    group      memory control group that keeps the limit, "" if there is none: then page cache is rationed
    folder     the model                   work     folder of its experts as Accelerate writes them
    stores     "16", "8" or "4" -> packed store  fitted   name -> predictor's file     notes  folder for recordings
    pace       seconds to read an expert, and of a layer's experts at work, for the prefetch `budget`
    looks      seconds that each fitted predictor's answer about a layer takes, for the same
    """

    name: str
    budget: float
    round: int
    ids: list[int]
    tokens: int
    limit: int
    group: str
    folder: str
    work: str
    stores: dict[str, str]
    fitted: dict[str, str]
    notes: str
    pace: tuple[float, float]
    looks: dict[str, float]
    threads: int

    def to_json(self) -> str:
        """For `read`."""
        return json.dumps(asdict(self))

    @classmethod
    def read(cls, path: str) -> "Turn":
        """From a file."""
        return cls(**json.loads(Path(path).read_text()))


def split(name: str) -> tuple[str, str, str]:
    """Eviction, prefetch ("" = none), and IN_PLACE or a key of `Turn.stores`, of a contestant of foregate."""
    words = name.split()
    packed = next((str(BITS[word]) for word in words if word in BITS), IN_PLACE)
    evict, *rest = [word for word in words if word not in BITS]
    return evict, rest[0] if rest else "", packed


def play(turn: Turn) -> list[Any]:
    """The blocks of a turn; torch and the rest are imported here, when the process is in its group."""
    import torch

    torch.set_num_threads(turn.threads)
    ids = torch.tensor([turn.ids])
    if turn.name in OTHERS:
        return [_other(turn, ids)]
    if turn.name == PAIR:
        return _pair(turn, ids)
    return [_foregate(turn, ids)]


def _other(turn: Turn, ids: Any) -> Any:
    import offload_baselines as others
    from offload_measure import forget_peak, memory

    openers = {MMAP: others.mapped, AUTO: others.accelerate_auto, EXPERTS: others.accelerate_experts}
    slots = turn.limit - memory("VmRSS")  # what foregate gives to the rest of the plan, a user gives to Accelerate
    model, ration = openers[turn.name](Path(turn.folder), Path(turn.work), slots)
    ration.empty()
    assert ration.cached() < 2**20, f"{ration.cached()} bytes stayed in the page cache; is another process using them?"
    held = forget_peak()
    if not turn.group:
        ration.budget = max(turn.limit - held, 0)
    block = _measured(
        turn,
        model.generate,
        ids,
        excluded=lambda: ration.seconds,
        used=None if turn.group else lambda: held + ration.peak,
        counts=lambda: {"device_map": _short(getattr(model, "hf_device_map", {}))},
    )
    ration.empty()
    return block


def _measured(turn: Turn, generate: Any, ids: Any, **more: Any) -> Any:
    """The block of a turn's one contestant; `more` as `measure` has it."""
    from offload_measure import measure

    common = {"contestant": turn.name, "budget": turn.budget, "number": turn.round, "limit": turn.limit}
    return measure(generate, ids, turn.tokens, **common, **more)


def _short(places: dict[str, Any]) -> dict[str, int]:
    return {place: list(places.values()).count(place) for place in dict.fromkeys(map(str, places.values()))}


def _foregate(turn: Turn, ids: Any) -> Any:
    from offload_measure import forget_peak

    _, prefetch, _ = split(turn.name)
    oracle = _oracle(turn, ids) if prefetch.startswith(ORACLE) else None
    forget_peak()
    with _engine(turn, turn.name, turn.budget, oracle) as engine:
        block = _measured(turn, engine.generate, ids, counts=lambda: _counts(engine))
        _note(turn, engine)
    return block


def _engine(turn: Turn, name: str, budget: float, oracle: Any = None) -> Any:
    import foregate

    evict, prefetch, packed = split(name)
    who, _, rest = prefetch.partition(",")
    return foregate.offload(
        turn.folder,
        # Of smaller experts more fit into the same memory.
        memory=f"{budget:.0%}" if packed in (IN_PLACE, "16") else f"{turn.limit}B",
        evict=evict,
        prefetch=(rest if oracle else ",".join((turn.fitted.get(who, who), rest))) if prefetch else None,
        predictor=oracle,
        read_seconds=turn.pace[0],
        window_seconds=turn.pace[1],
        look_seconds=turn.looks.get(who, 0.0),
        store=turn.stores.get(packed),
    )


def _counts(engine: Any) -> dict[str, Any]:
    """What was decoded, in sums: see foregate.runtime.telemetry."""
    import numpy as np

    from foregate.runtime.telemetry import FIELDS

    tokens, numbers = engine.passes()
    decoded = numbers[np.array(tokens) == 1].sum(axis=(0, 1))
    return {"passes": tokens.count(1), **dict(zip(FIELDS, decoded.tolist(), strict=True)), "plan": engine.plan.memory}


def _oracle(turn: Turn, ids: Any) -> Any:
    """Of a recording of the same prompt, made now if no contestant has made it."""
    from offload_predictors import Oracle

    from foregate.traces.storage import read_trace

    file = _file(turn)
    if not file.exists():
        with _engine(turn, "lru", turn.budget) as engine:
            engine.generate(ids, max_new_tokens=turn.tokens, do_sample=False, eos_token_id=None, pad_token_id=2)
            _note(turn, engine)
    return Oracle(read_trace(file))


def _note(turn: Turn, engine: Any) -> None:
    from foregate.traces.storage import write_trace

    file = _file(turn)
    if split(turn.name)[2] in (IN_PLACE, "16") and not file.exists():
        write_trace(engine.record(), file)


def _file(turn: Turn) -> Path:
    prompt = hashlib.sha256(str(turn.ids).encode()).hexdigest()[:12]
    return Path(turn.notes) / f"{prompt}-{turn.tokens}.parquet"


def _pair(turn: Turn, ids: Any) -> list[Any]:
    """Both in memory at once, so that what else the machine does meets both alike."""
    import offload_baselines as others
    import torch
    from offload_measure import measure

    model = others.resident(Path(turn.folder), Path(turn.work), "eager")
    blocks = []
    common: dict[str, Any] = {"budget": 1.0, "limit": 0}
    with _engine(turn, "lru", 1.0) as engine:
        many = torch.randint(3, model.config.vocab_size, (1, WARM), generator=torch.Generator().manual_seed(0))
        engine.generate(many, max_new_tokens=1, do_sample=False, eos_token_id=None, pad_token_id=2)
        for number in range(TURNS):
            pair = [("transformers, resident", model.generate), ("lru, resident", engine.generate)]
            for name, generate in pair[:: 1 if number % 2 else -1]:
                number_ = turn.round * TURNS + number
                blocks.append(measure(generate, ids, turn.tokens, contestant=name, number=number_, **common))
    return blocks


def main() -> None:
    """Play a turn, in the group that was made for it."""
    turn = Turn.read(sys.argv[1])
    if turn.group:
        from offload_limit import Group

        limited = Group(Path(turn.group), 1 if (Path(turn.group) / "memory.limit_in_bytes").exists() else 2)
        limited.join()
    rows = [block.row() for block in play(turn)]
    if turn.group:
        for row in rows:
            row["group"] = limited.numbers()
    Path(sys.argv[2]).write_text(json.dumps(rows))


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that spin take the readers' processor
    main()
