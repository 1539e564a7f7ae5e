"""Supernets: weights, slicing, the stateless forward, extraction."""
