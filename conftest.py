"""What pytest does not collect here."""

from importlib.util import find_spec

# Triton has no package for every platform; doctests are collected by importing each module
collect_ignore_glob = [] if find_spec("triton") else ["src/globalcnn/ops/triton/*"]
