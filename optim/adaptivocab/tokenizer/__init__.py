"""Tokenizers with the new tokens in them."""
