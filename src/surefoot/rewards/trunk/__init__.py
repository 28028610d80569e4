"""Texts to hidden states: what every kind of reward model on a transformer shares."""
