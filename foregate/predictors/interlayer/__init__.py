"""The inter-layer speculation transformer and its variants."""
