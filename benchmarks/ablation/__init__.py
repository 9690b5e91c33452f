"""What the Global layer adds: the same network with other blocks in its place, under one recipe.

`arms.py` lists the blocks, `runs.py` trains them, `python -m benchmarks.ablation` is the command, and
`python -m benchmarks.ablation_page` writes the page from the results.
"""
