"""Estimate the memory that a training step needs on each GPU."""
