"""What commands need of the operating system: standard streams that never end them, and paths."""
