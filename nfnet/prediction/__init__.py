"""Flags and files around a prediction: the network, the images to classify, and the results."""
