"""Predictors that read hidden states."""
