"""Continuous batching, sampling and scoring on one device; knows nothing of Ray."""
