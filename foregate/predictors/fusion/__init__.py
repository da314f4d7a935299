"""`bank`'s vote corrected by a network: the best guess from ids alone."""
