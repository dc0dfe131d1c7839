"""Tell people: progress bars, an event log, trackers, a page that opens from disk."""
