"""Tables of `surefoot theory`: exact computations that check the paper's claims."""
