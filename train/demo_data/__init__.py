"""Small data sets of real images for the demo, and the scripts that make them."""
