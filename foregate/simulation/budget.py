"""How many experts fit into the fast memory that every strategy of a comparison gets. Knows no strategy."""

from foregate.errors import ChoiceError
from foregate.simulation.shapes import ModelShape


def slots_for(shape: ModelShape, *, percent: float | None = None, size: int | None = None) -> int:
    """Slots for a share of all experts, or in so many bytes for the whole model: what is not an expert comes first.

    Raises: ChoiceError where one layer's set does not fit, saying the least that does.
    """
    dense = sum(shape.dense_bytes) + 2 * shape.head_bytes  # the embedding at both ends
    if percent is not None:
        slots = int(percent * shape.all_experts / 100 + 1e-9)
        given = f"{percent:g}% of the experts"
    else:
        assert size is not None
        slots = max(0, size - dense) // shape.slot_bytes
        given = f"{size / 2**20:,.0f} MiB"
    least = least_slots(shape)
    if slots < least:
        raise ChoiceError(
            f"{given} are too little: {shape.name} needs {least} slots of {shape.slot_bytes / 2**20:,.1f} MiB for one "
            f"layer at work and the next one's reads, that is {-(-least * 1000 // shape.all_experts) / 10:g}% of its "
            f"experts, or {-(-(dense + least * shape.slot_bytes) // 2**20)}MiB for all of it"
        )
    return min(slots, shape.all_experts)


def least_slots(shape: ModelShape) -> int:
    """As the runtime has it: a token's experts of one layer, and as many that arrive meanwhile."""
    return min(max(2 * shape.top_k, 2), shape.all_experts)
