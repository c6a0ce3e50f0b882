"""Simulated trials, and what is promised of them."""
