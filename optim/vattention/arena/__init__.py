"""Pages of virtual memory, reserved once and committed on demand."""
