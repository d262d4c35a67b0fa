"""Sums of parts of gradients, packed into one array that travels between devices."""
