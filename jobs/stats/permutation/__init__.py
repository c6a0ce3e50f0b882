"""Effects and their tests, which swap the sides of whole clusters."""
