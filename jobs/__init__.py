"""What people run, submit and read."""
