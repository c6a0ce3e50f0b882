"""AdaptiVocab: a domain's own vocabulary, so that the same text has fewer tokens.

Nakash et al. 2025, "AdaptiVocab: Enhancing LLM Efficiency in Focused Domains through Lightweight
Vocabulary Adaptation", with another selection and plain artifacts.
"""
