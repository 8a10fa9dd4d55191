"""Experiments: a scenario in TOML becomes runs in shuffled order, and these become samples in JSON.

::

    scenario.py --> plan --> runner.py --> ways/*  on a guest (sources.py) and a file system (file_systems.py)
                                 |           `-- child.py: what is ours runs in a fresh process each time
                                 `--> results.py: stored after every sample

Measuring draws and judges nothing: pictures, comparisons and reports are made from stored results alone.
"""
