"""From gradients to updates: optimizers by name, learning-rate schedules, clipping."""
