"""Reward sources: everything that turns prompts and completions into a `RewardEstimate`."""
