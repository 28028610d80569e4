"""Turn records into tables, figures and self-contained HTML pages, without torch."""
