"""The experiments of this project, one file each.

Each file states the command that runs it, its expected cost and its expected result.
"""
