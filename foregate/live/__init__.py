"""Watching a model run: in the terminal, and on a local page."""
