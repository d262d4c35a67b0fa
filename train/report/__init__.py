"""Output for people: tables, units, plots and files of results. It imports `nfnet.errors` only."""
