"""Kernel records by family; every module here registers its kernels when imported."""
