"""From weights to files that run elsewhere."""
