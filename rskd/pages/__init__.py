"""HTML pages: parts that every page is made of, figures, and the report of a distillation."""
