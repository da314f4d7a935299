"""Predictors: estimators that say which experts a later layer will need."""
