"""A small world of drawn images: what the embedded base learned, and what the demo teaches it."""
