"""The kinds of reward source: each owns its settings, its source and its fit."""
