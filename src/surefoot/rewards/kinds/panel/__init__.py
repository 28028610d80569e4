"""Judges of different model families as one reward source (docs/judge.md)."""
