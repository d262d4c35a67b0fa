"""The compiler's text in, numbers out. Standard library only."""
