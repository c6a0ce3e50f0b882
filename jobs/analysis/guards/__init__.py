"""What forbids a verdict, whatever its numbers."""
