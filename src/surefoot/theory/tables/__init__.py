"""The tables of `surefoot theory`: the paper's claims, computed exactly."""
