"""The description of one experiment: its fields, their rules, and how files and flags set them."""
