"""Whether an installation and a machine do what training needs, and whether two checkpoints compute the same."""
