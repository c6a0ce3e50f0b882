"""Outputs and targets to scores; outcomes of standard tasks."""
