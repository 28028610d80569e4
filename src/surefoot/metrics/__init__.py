"""Statistics on NumPy arrays: intervals, spread of runs, calibration of margins, value of a variance."""
