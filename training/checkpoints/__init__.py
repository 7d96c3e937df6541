"""Checkpoints of a run: what lies on disk, what is copied aside, written behind the steps, and taken up again.

`saver.Saver` is the one door: `on_disk` knows files, `snapshot` host memory, `writing` the thread, `elastic` another
number of workers, `average` the moving average.
"""
