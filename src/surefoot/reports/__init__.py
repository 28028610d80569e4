"""Records to tables, figures and one self-contained HTML file; reads files only and imports no torch."""
