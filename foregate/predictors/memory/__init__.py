"""Predictors that remember: this sequence, and the training tokens."""
