"""Arenas by CUDA's driver."""
