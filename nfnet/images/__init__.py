"""From the bytes of an image file to the normalized array that the network takes."""
