"""Where expert bytes live: in a checkpoint as it was published, or packed. No slots, no decisions."""

from foregate.store.base import Buffer, ExpertStore
from foregate.store.layout import Layout, Part

__all__ = ["Buffer", "ExpertStore", "Layout", "Part"]
