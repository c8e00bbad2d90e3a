"""Products on the CPU near the memory's rate: C, compiled where it runs, in place of torch's.

`ops` gives the operations of a CPU; `products` calls the C library; `library` compiles and keeps
it. The twin of it all is `quire.kernels.reference`, which also serves where there is no compiler.
Nothing here downloads anything.
"""
