"""From collections of images to batches: record files, decoding, augmentation, prefetching."""
