"""The commands: arguments in, printing out."""
