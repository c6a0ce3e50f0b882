"""Which tokens come, and which go."""
