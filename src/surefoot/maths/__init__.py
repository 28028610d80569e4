"""Pure mathematics on tensors: no models, no files, no logging, no global random state."""
