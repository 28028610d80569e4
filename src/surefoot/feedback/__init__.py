"""Which pairs to label next, and a page to label them on (docs/labels.md)."""
