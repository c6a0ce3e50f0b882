"""What a trial will cost and what it can see, before it runs."""
