"""How trials run on Ray, and what they leave."""
