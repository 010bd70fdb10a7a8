"""Numerical kernels behind plain functions, a plain reference beside each fast one. A backend that cannot serve refuses with a reason."""
