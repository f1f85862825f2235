"""Benchmarks that run on the user's machine: `thalweg bench`.

`cases` lists what is measured, `own` and `peers` hold the two sides of each case, `measuring` runs them in
fresh processes in turn and makes the table. `python -m thalweg.bench CASE SIDE THREADS` is one worker.
"""
