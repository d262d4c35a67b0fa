"""Google Cloud Storage: objects, paths of them, and local copies of them.

All of it goes through TensorStore, which also reads and writes the arrays of checkpoints: so there
is one client with one set of credentials, retries and limits. What imports this package pays for
TensorStore; `nfnet.system.paths` recognizes paths in a bucket without it.
"""
