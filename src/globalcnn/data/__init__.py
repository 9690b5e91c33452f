"""Data: sources of labelled images by name, and loaders whose batches depend on (seed, epoch, rank) alone."""

from .augment import Augmentation
from .load import data_names, load_data
from .source import DataSource, Loader

__all__ = ["Augmentation", "DataSource", "Loader", "data_names", "load_data"]
