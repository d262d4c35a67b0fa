"""The input pipeline: image folders, record files, decoding, augmentation, batches, prefetching.

This package may import `train.report`, `train.config` and `nfnet`, but neither `train.step` nor
`train.run`.
"""
