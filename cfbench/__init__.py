"""The benchmark of long-video models: films, scores, tables, curves, and their records."""
