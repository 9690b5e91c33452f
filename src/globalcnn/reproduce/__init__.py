"""What concerns the paper alone: its rows and their counting, the authors' names, the published recipes.

Nothing else in the library reads it but the command line.
"""

from .authors import load_authors_state_dict
from .recipes import PUBLISHED_FOR, RECIPES, find_recipe
from .rows import PublishedRow, published_rows
from .table import TableRow, published_table

__all__ = [
    "PUBLISHED_FOR",
    "RECIPES",
    "PublishedRow",
    "TableRow",
    "find_recipe",
    "load_authors_state_dict",
    "published_rows",
    "published_table",
]
