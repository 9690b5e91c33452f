"""All that is about the paper alone: published rows and their counting, the authors' names, their recipes."""
