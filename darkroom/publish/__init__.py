"""Give it away: what a file says about itself, cards and uploads."""
