"""A small world of drawn pictures: what the embedded base learned, and what the demo teaches it."""
