"""Measurements of this machine, `cellsearch bench …`: how fast cells are, beside what they replace.

Lives here: what is measured and how it is told. Nothing else in the project depends on a number
that is found here, and no test judges one.
"""
