"""The life of a trial: planned, run, resumed, extended, replayed."""
