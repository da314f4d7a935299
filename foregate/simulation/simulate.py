"""A recorded run on a machine, with so many experts in fast memory: what it would take. Iso-budget by construction: the
slots are the same for everybody, and every read is charged.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from foregate.arrays import Float32, Float64, Int, Int32
from foregate.errors import ChoiceError
from foregate.hardware.profile import Profile
from foregate.memory.assemble import assemble
from foregate.memory.counts import Counts
from foregate.memory.eviction import eviction as eviction_of
from foregate.memory.interface import BELADY, Eviction, Prefetch
from foregate.memory.predicted import UInt16
from foregate.memory.prefetch import Budget
from foregate.memory.prefetch import prefetch as prefetch_of
from foregate.memory.state import State
from foregate.simulation import clock as at
from foregate.simulation.contents import Host
from foregate.simulation.costs import Costs
from foregate.simulation.loop import Course, run
from foregate.simulation.pace import pace_of
from foregate.simulation.passes import Passes
from foregate.simulation.shapes import ModelShape
from foregate.simulation.timeline import Events, Timeline


@dataclass(frozen=True, eq=False)
class Setting:
    """How experts are held and read ahead: what `foregate.memory.planner.Planner` is given.

    slots         experts in fast memory
    evict, ahead  eviction (also belady) and prefetch
    host_slots    experts in host memory between disk and device; 0 = none; None = all of them, from the start
    options       `Planner`'s others
    """

    slots: int
    evict: Eviction
    ahead: Prefetch
    host_slots: int | None = 0
    options: dict[str, Any] = field(default_factory=dict)


def simulate(  # noqa: PLR0917
    passes: Passes,
    shape: ModelShape,
    profile: Profile,
    slots: int,
    eviction: Eviction | str = "lru",
    prefetch: Prefetch | str = "none",
    *,
    chances: Float32 | None = None,
    entered: bool = False,
    host_slots: int | None = 0,
    threads: int | None = None,
    look_seconds: float | None = None,
    usage: Int | None = None,
    foreseen: UInt16 | None = None,
    transfers: bool = False,
    window: range | None = None,
) -> Timeline:
    """Run the passes of a model of this shape on a machine, as `foregate run` would.

    slots         experts in fast memory
    chances       Float32[P, L, H, E]: what is said of layer l in pass p, h + 1 layers before (see `chances.py`); None:
                  nobody is asked
    entered       whoever says it reads the residual stream: is asked as a layer is entered, not as one was routed
    host_slots    experts in host memory between disk and device; 0 = none; None = all of them, from the start
    threads       that read; None: as the runtime would have it
    look_seconds  an answer about one layer; None: the profile's time of a predictor, or nothing where it has none
    usage         [L, E] how often each expert was used, for the eviction "static"
    foreseen      for `predicted`: what it will think, see `foresight.py`; None: it is computed as the run goes on
    transfers     note every transfer
    window        of passes whose events are noted

    Raises: ChoiceError for what cannot be: too few slots, shapes that differ, times that are not numbers.
    """
    if (shape.layers, shape.experts) != (passes.layers, passes.num_experts):
        raise ChoiceError(
            f"{shape.name} has {shape.layers} layers of {shape.experts} experts, the passes {passes.layers} of "
            f"{passes.num_experts}; they must be the same model's"
        )
    ahead = prefetch_of(prefetch) if isinstance(prefetch, str) else prefetch
    options: dict[str, Any] = {"profile": usage}
    most = int(passes.tokens.max(initial=1)), int(passes.rows.max(initial=1))
    costs = Costs.of(profile, shape, tokens=most[0], rows=most[1], threads=threads, look_seconds=look_seconds)
    if isinstance(ahead, Budget):
        pace = pace_of(profile, shape, on_disk=host_slots is not None)
        options |= {"expert_bytes": shape.slot_bytes, "read_seconds": pace.read, "window_seconds": pace.window}
        options["look_seconds"] = float(costs.look[1])
    kind = eviction_of(eviction) if isinstance(eviction, str) else eviction
    setting = Setting(slots, kind, ahead, host_slots, options)
    return play(
        passes, costs, setting, chances=chances, entered=entered, foreseen=foreseen, transfers=transfers, window=window
    )


def play(
    passes: Passes,
    costs: Costs,
    setting: Setting,
    *,
    chances: Float32 | None = None,
    entered: bool = False,
    foreseen: UInt16 | None = None,
    transfers: bool = False,
    window: range | None = None,
) -> Timeline:
    """The same with times given as they are.

    Raises: ChoiceError.
    """
    said = _checked(passes, chances)
    least = min(max(2, passes.top_k), passes.layers * passes.num_experts)
    if setting.slots < least:
        raise ChoiceError(
            f"{setting.slots} slots are too few for one layer's set: {passes.top_k} experts a token need {least}"
        )
    course = _course(passes, costs, setting, said, entered)
    seen = window or range(0)
    room = (0, 0)
    while True:
        state, clock, ends = _run(passes, costs, setting, course, room, seen, foreseen)
        found = (int(clock.now[at.MOVES]) if transfers else 0, int(clock.now[at.EVENTS]))
        if found == room:
            break
        room = found  # now that it is known how much there is to note, once more
    return Timeline(
        slots=len(state.key_of),
        pass_tokens=passes.rows,
        pass_ends=ends,
        prefill=passes.prefill,
        prompt=passes.prompt,
        by_pass=clock.by_pass,
        by_layer=clock.by_layer,
        counts=Counts(*state.counts.T.copy()),
        transfers=clock.moves if transfers else None,
        events=None if window is None else _events(clock.events),
    )


def _run(  # noqa: PLR0917
    passes: Passes,
    costs: Costs,
    setting: Setting,
    course: Course,
    room: tuple[int, int],
    window: range,
    foreseen: UInt16 | None,
) -> tuple[State, at.Clock, Float64]:
    L, E = passes.layers, passes.num_experts
    horizon = len(passes) * L if setting.evict.needs_future else 0
    options = {"top_k": passes.top_k, "horizon": horizon, "foreseen": foreseen, **setting.options}
    state, forecast = assemble(L, E, setting.slots, setting.evict, setting.ahead, **options)
    host = _host(L, E, setting)
    clock = _clock(passes, costs, len(state.key_of), setting, host[0] if host else None, room, window)
    ends = np.zeros(len(passes))
    run(state, forecast, host, clock, course, ends)
    return state, clock, ends


def _course(passes: Passes, costs: Costs, setting: Setting, said: Float32, entered: bool) -> Course:
    costs = costs.reaching(int(passes.tokens.max(initial=1)), int(passes.rows.max(initial=1)))
    L = passes.layers
    return Course(
        passes.starts,
        passes.experts,
        passes.tokens,
        passes.rows,
        passes.fresh,
        passes.next_uses() if setting.evict.needs_future else np.zeros(0, np.int64),
        said,
        entered,
        np.ascontiguousarray(np.broadcast_to(costs.expert, (L, costs.expert.shape[1]))),
        np.ascontiguousarray(np.broadcast_to(costs.dense, (L, costs.dense.shape[1]))),
        costs.around,
        costs.look,
        waves=np.zeros((2, 2, passes.num_experts), np.int32),
        rest=np.zeros(passes.num_experts, np.int32),
        many=np.zeros(passes.num_experts, np.int32),
        uses=np.zeros(passes.num_experts, np.int64),
        asked=np.zeros(passes.num_experts, np.int64),
    )


def _host(L: int, E: int, setting: Setting) -> Host | None:
    """The planner of the host's memory, as `foregate.runtime.tiers` has it; None where there is none."""
    if not setting.host_slots:
        return None
    if setting.evict.code == BELADY:
        raise ChoiceError("belady cannot decide what stays in host memory; leave host memory out, or give all of it")
    return assemble(L, E, setting.host_slots, setting.evict, profile=setting.options.get("profile"))


def _clock(  # noqa: PLR0917
    passes: Passes, costs: Costs, slots: int, setting: Setting, host: State | None, room: tuple[int, int], window: range
) -> at.Clock:
    L, E = passes.layers, passes.num_experts
    fields = len(at.FIELDS)
    now = np.zeros(at.REGISTERS, np.int64)
    now[at.FIRST], now[at.LAST] = (window.start, window.stop - 1) if len(window) else (0, -1)
    now[at.SOURCE] = (
        at.ALL_IN_HOST if setting.host_slots is None else at.BEHIND_HOST if setting.host_slots else at.FROM_DISK
    )
    holders = np.zeros((slots, 6), np.int64)
    holders[:, at.KEY] = -1
    return at.Clock(
        slots=holders,
        queue=np.zeros(slots, np.int32),
        later=np.zeros(slots, np.int32),
        flying=np.zeros((costs.read.shape[2], at.FLIGHT)),
        pace=np.ascontiguousarray(costs.read),
        size=costs.bytes,
        now=now,
        dial=np.array([0.0, costs.work_slowed, costs.reads_slowed, costs.idle_slowed, 1.0]),
        by_layer=np.zeros((L, fields)),
        by_pass=np.zeros((len(passes), fields)),
        place=host.slot_of if host else np.full(L * E, -1, np.int32),
        holds=np.full(len(host.key_of) if host else 0, -1, np.int32),
        moves=np.zeros((room[0], 5), np.int32),
        events=np.zeros((room[1], 7)),
    )


def _checked(passes: Passes, chances: Float32 | None) -> Float32:
    L, E = passes.layers, passes.num_experts
    if chances is None:
        return np.zeros((len(passes), L, 0, E), np.float32)
    right = chances.ndim == 4 and chances.shape[:2] == (len(passes), L) and chances.shape[3] == E
    if not right:
        raise ChoiceError(
            f"the chances have shape {chances.shape}; {len(passes)} passes of this model need {len(passes)} x {L} x "
            f"distance x {E}"
        )
    return np.ascontiguousarray(chances, np.float32)


def _events(rows: Float64) -> Events:
    kind, begin, end, number, layer, expert, ahead = rows.T.copy()
    whole: list[Int32] = [column.astype(np.int32) for column in (kind, number, layer, expert)]
    return Events(whole[0], begin, end, whole[1], whole[2], whole[3], ahead.astype(np.bool_))
