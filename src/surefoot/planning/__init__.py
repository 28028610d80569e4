"""How much memory a training step needs on each GPU."""
