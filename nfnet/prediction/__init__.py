"""Files around a prediction: the images to classify, and the results."""
