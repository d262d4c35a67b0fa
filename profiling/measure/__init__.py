"""Measures what is there: traces of devices, input pipelines, other implementations."""
