"""How much memory goes where, decided before a model is loaded. Measures nothing and allocates nothing."""

from dataclasses import asdict, dataclass
from typing import Any

from foregate.errors import ChoiceError
from foregate.sizes import Size, size_text


def minimum_slots(top_k: int, experts: int) -> int:
    """The fewest slots a model runs in: one token's experts of a layer at work, and as many arriving meanwhile.

    With fewer, a prefill that needs more experts than fit could read none while it computes.
    """
    return min(max(2 * top_k, 2), experts)


@dataclass(frozen=True)
class MemoryPlan:
    """Where the bytes go. All sizes are bytes, `slots`, `experts` and `host_slots` are counts, `context` is tokens.

    memory      where experts are computed, all of it
    dense       weights that are no experts'
    cache       keys and values of `context` tokens; None: unknown
    overhead    what is there besides: Python and its libraries, buffers of readers
    slot        one expert in its slot
    slots       how many fit, at most `experts`
    experts     of all layers together
    host_slots  experts kept in host memory, in front of the disk
    """

    memory: int
    dense: int
    cache: int | None
    context: int
    overhead: int
    slot: int
    slots: int
    experts: int
    host_slots: int = 0

    @property
    def remaining(self) -> int:
        """Bytes that the plan leaves: for activations, and for the keys and values if their size is unknown."""
        return self.memory - self.dense - (self.cache or 0) - self.overhead - self.slots * self.slot

    def rows(self) -> list[tuple[str, str]]:
        """Name and value of each part, in words."""
        share = f"{self.slots / self.experts:.1%} of {self.experts} experts"
        rows = [
            ("memory", size_text(self.memory)),
            ("weights that are no experts'", size_text(self.dense)),
            (f"keys and values, {self.context} tokens", "unknown" if self.cache is None else size_text(self.cache)),
            (f"{self.slots} slots of {size_text(self.slot)}", f"{size_text(self.slots * self.slot)}, {share}"),
        ]
        if self.remaining:
            rows.append(("remains for activations", size_text(self.remaining)))
        if self.overhead:
            rows.insert(1, ("Python, libraries, buffers", size_text(self.overhead)))
        if self.host_slots:
            kept = f"{size_text(self.host_slots * self.slot)}, {self.host_slots / self.experts:.1%} of the experts"
            rows.append((f"host memory, {self.host_slots} experts", kept))
        return rows

    def text(self) -> str:
        """The rows as lines."""
        rows = self.rows()
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:{width}}  {value}" for name, value in rows)

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {**asdict(self), "remaining": self.remaining}


def plan_memory(
    memory: Size,
    host_memory: Size | None = None,
    *,
    dense: int,
    cache: int | None,
    context: int,
    slot: int,
    experts: int,
    top_k: int,
    overhead: int = 0,
) -> MemoryPlan:
    """Divide the memory: what a model needs whole comes first, slots take the rest; see MemoryPlan for the names.

    A share of the experts gives the slots directly, and the memory is then what all of it adds up to.

    Raises: ChoiceError that names the least that would do, where the slots are too few.
    """
    fixed, least = dense + (cache or 0) + overhead, minimum_slots(top_k, experts)
    slots = _fitting(memory, slot, experts, fixed)
    if slots < least:
        needed = fixed + least * slot
        given = size_text(memory.bytes) if memory.bytes is not None else f"{memory.percent:g}% of the experts"
        raise ChoiceError(
            f"{given} is too little memory: this model needs {_rounded_up(needed)} ({least} slots of "
            f"{size_text(slot)}, {size_text(fixed)} for the rest), or {_percent_up(least, experts)} of its experts"
        )
    host_slots = 0
    if host_memory is not None:
        host_slots = _fitting(host_memory, slot, experts, 0)
        if host_slots == 0:
            raise ChoiceError(f"no expert fits in that host memory; give at least {_rounded_up(slot)}, or leave it out")
    total = memory.bytes if memory.bytes is not None else fixed + slots * slot
    return MemoryPlan(total, dense, cache, context, overhead, slot, slots, experts, host_slots)


def _fitting(size: Size, slot: int, experts: int, fixed: int) -> int:
    """How many slots a size holds, beside what is fixed; a share speaks of slots alone."""
    if size.percent is not None:
        return int(size.percent * experts / 100 + 1e-9)
    assert size.bytes is not None
    return max(min((size.bytes - fixed) // slot, experts), 0)


def _rounded_up(size: int) -> str:
    """A text that `parse_size` takes, of at least these bytes."""
    return f"{-(-size // 2**20)}MiB"


def _percent_up(part: int, whole: int) -> str:
    """A text that `parse_size` takes, of at least this share: to a tenth of a percent."""
    return f"{-(-part * 1000 // whole) / 10:g}%"
