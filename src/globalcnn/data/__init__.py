"""Data: sources of labelled images by name or from memory, and loaders whose batches depend on (seed, epoch,
rank) alone."""

from .augment import Augmentation
from .given import from_arrays, from_dataset
from .load import data_names, load_data
from .source import DataSource, Loader

__all__ = ["Augmentation", "DataSource", "Loader", "data_names", "from_arrays", "from_dataset", "load_data"]
