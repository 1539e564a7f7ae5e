"""Training supernets: what to train at a step, and how."""
