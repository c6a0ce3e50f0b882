"""lm-eval's tasks as data sets."""
