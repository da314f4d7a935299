"""The planner against a clock: what a run would take, from recorded routing and a machine's profile. Runs no model."""

from pathlib import Path

from foregate.memory import forget_old_code

forget_old_code(Path(__file__).parent)
