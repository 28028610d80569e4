"""Studies over many reward models and many runs; every result is a record on disk."""
