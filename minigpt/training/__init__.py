"""How a model learns: configuration, optimizers, checkpoints, the loop."""
