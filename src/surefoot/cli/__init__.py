"""The `surefoot` command: parse, import what is needed, call."""
