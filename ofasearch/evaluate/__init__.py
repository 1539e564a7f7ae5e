"""What networks predict, and what was measured of them."""
