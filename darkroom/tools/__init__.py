"""One verb per file: generate, verify, self-test."""
