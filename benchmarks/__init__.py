"""Speed and memory of layers and networks on this machine; `globalcnn bench` is the door to the tables.

The package is not part of the wheel: run it in a checkout of the project, `python -m benchmarks.MODULE --help`.
"""
