"""A leaf: tiling, token layout, frames of videos, and the configuration, modelling and processing files that travel with an export."""
