"""Turns the bytes of an image file into the normalized array that the network takes."""
