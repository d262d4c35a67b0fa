"""What one experiment is, and how it is read from a file and a command line."""
