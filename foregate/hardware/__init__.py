"""What a machine can do: measured, or read off a datasheet; and what of foregate works on it. Runs no model."""
