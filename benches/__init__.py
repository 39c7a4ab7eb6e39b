"""Benchmarks: every figure that the project promises, as a ratio taken in one run.

`run.py` is the program (``make bench``). Each other module measures one subject: its `measure(run)`
interleaves floors and candidates, checks its own results (counts, sums, order), and returns flat
figures, units last. None of them decides whether a figure is good: `figures.py` does.
"""
