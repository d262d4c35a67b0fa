"""Sources that are tar files: of classes, of ImageNet, and with labels beside the images."""
