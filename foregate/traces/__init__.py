"""Traces: what a model really routed. Schema, storage, recording and importing."""
