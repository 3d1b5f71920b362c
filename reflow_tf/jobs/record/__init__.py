"""The report of one run: what happened, put into words, a module for each kind of thing that there is to tell."""
