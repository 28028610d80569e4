"""From texts to hidden states and rewards of a transformer, shared by all kinds of reward models."""
