"""Where the tasks of a study run: processes, Ray, Slurm."""
