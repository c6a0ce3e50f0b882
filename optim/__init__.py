"""The optimisations, on one device, without Ray."""
