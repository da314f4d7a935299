"""What every predictor that torch fits shares: the training loop, its schedules, its checkpoints."""
