"""One training step as a pure function: state, optimizer, losses, mixing, sharding."""
