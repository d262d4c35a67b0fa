"""Reads foreign folders safely and writes files durably, to prepare a data set."""
