"""Whether an installation and a machine do what training needs: versions, kernels, parallel layouts."""
