"""Steps of the engine."""
