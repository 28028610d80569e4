"""Members as heads on one shared trunk."""
