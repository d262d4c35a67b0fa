"""The input side: image collections, record files, decoding, augmentation, batches, prefetching.

This package may import `train.report`, `train.config` and `nfnet`, never the step or the run.
"""
