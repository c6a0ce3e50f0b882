"""Bases that concentrate activations, and weights rotated into them."""
