"""Latency: tables, estimates, the stopwatch."""
