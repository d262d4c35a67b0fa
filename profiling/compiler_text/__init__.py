"""Reads what the compiler writes: text in, numbers out.

Imports the standard library only, and nothing else of this project.
"""
