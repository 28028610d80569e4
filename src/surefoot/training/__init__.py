"""TRL's trainers with the variance-aware objective."""
