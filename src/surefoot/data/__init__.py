"""Preference data: loaded, checked before any work, split; and an offline world whose true reward is known."""
