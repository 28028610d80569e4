"""Load, check and split preference data; and an offline world whose true reward is known."""
