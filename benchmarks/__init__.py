"""Speed, memory and error rates, against named rivals in the same run."""
