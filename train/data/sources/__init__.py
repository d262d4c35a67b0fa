"""The kinds of sources that `train.prepare_data` reads, each as lists of labeled images."""
