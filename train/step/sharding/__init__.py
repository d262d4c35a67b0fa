"""Which device holds what: the mesh, the parts of parameters, the examples of a batch."""
