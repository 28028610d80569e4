"""Members as reward models of their own."""
