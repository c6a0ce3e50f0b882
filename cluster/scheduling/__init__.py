"""Who runs which cells: the queue, the workers, deadlines, failures."""
