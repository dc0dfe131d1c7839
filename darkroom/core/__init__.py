"""Words everyone shares. Standard library only."""
