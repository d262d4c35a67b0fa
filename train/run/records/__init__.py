"""The append-only records that a run leaves in its workdir."""
