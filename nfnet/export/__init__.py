"""Writes a network as a program that runs without this project.

`python -m nfnet.export` (`__main__`) writes a folder (`folder`) with a description (`description`,
`readme`) and a program (`program`) in one of three formats, of which each has a module.
"""
