"""Weighted criteria of each prompt as a reward source: judged ones, and verifiers beside them."""
