"""Commands. Each is imported when it is used."""
