"""A judge that is asked again only about completions whose comparison is still open."""
