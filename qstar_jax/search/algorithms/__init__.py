"""The searchers, a file each: `SEARCHER`, and what its name means in a config.

`for_evaluation(config)` gives the settings without exploration that the name
stands for; widths, budget and temperature come from the config.
"""
