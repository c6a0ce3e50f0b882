"""Comparisons, and what may be said of them: verdicts, attribution, claims, looks, sample size."""
