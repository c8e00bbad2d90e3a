"""Attention over the paged cache: prefill, decode, the merges, and rotation with q/k norm.

Each file keeps one kernel family with its launcher; their plain twins stand in
`quire.kernels.reference`.
"""
