"""A fully connected layer, as squeeze-excite has two and the classifier is one."""
