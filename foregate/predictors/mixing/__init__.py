"""Predictors made of predictors, and what makes a confidence a probability."""
