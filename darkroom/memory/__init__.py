"""Where weights live and in which format, and what is recomputed instead of kept."""
