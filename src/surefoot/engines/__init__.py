"""The objective in engines other than TRL (docs/engines.md). Importing this package imports no engine."""
