"""From rows of JSON and media files to packs of a fixed number of tokens."""
