"""Intervals, spread of runs, calibration of margins, and what a variance is worth; NumPy only."""
