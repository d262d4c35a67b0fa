"""Opens and parses files that somebody else may have made."""
