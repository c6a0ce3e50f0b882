"""What vocabularies save and cost."""
