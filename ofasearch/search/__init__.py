"""Searches: a problem in, generations out. They receive callables and know no predictor, no table, no torch."""
