"""Exact policies and closed-form risks on finite problems."""
