"""The loop: batches in, updates and events out."""
