"""From a dataset file to batches: list, index, bucket, encode once, and deal out in a reproducible order."""
