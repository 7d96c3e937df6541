"""One static page about a training run, finished, running or failed: `RUN/summary.html`.

`record` reads the run folder, `charts` draw, `sections` and `page` write the page.
"""
