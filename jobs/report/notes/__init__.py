"""Sentences that a report adds to its numbers."""
