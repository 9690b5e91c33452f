"""Does condensing pay? A trained network made faster in several ways, at equal measured latency and training.

`arms.py` lists the ways and their candidates, `latency.py` times the candidates, `choice.py` takes one per
target, `runs.py` trains it; `python -m benchmarks.condensing` is the command, and
`python -m benchmarks.condensing_page` writes the page from the results.
"""
