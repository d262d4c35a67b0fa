"""Deals with the operating system: standard streams, paths, Ctrl-C and the limit of open files."""
