"""Everything a user may set: declared once, read from files, environment and command line. Imports no torch."""
