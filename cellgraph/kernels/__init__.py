"""Cells as machine code: C for a whole sequence, forward and backward, built with the system's
compiler when a cell is first used, and kept.

Only what is pointwise is generated for a cell; the matrix products are C files of this package.
Nothing is imported here: what needs no tensors must not pay for torch.
"""
