"""Deals with the operating system for all packages.

Standard streams, Ctrl-C, processes, paths, files that survive a power failure, locks on files, and
the limit of open files.
"""
