"""Deals with the operating system for commands: with standard streams and with paths."""
