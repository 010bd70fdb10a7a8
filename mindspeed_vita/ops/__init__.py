"""Numerical kernels behind plain functions; a backend that cannot serve a call refuses with the reason."""
