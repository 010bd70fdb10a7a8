"""Numerical kernels behind plain functions. Each fast kernel has a plain reference. A backend that cannot serve refuses with a reason."""
