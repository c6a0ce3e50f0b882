"""Few large files beside many small ones."""
