"""From a batch to a checkpoint: losses, negatives, the trainer and what surrounds it."""
