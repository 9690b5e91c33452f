"""Speed and memory of layers and networks side by side on this machine, as tables."""

from .results import Comparison, MemoryTable, Result, Settings
from .tables import TABLES, TableInfo

__all__ = ["TABLES", "Comparison", "MemoryTable", "Result", "Settings", "TableInfo"]
