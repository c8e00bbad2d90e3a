"""Products on the CPU at close to memory speed: C, compiled on the machine, in place of torch's.

`ops` gives the operations of a CPU; `products` calls the C library; `library` compiles and keeps
it. The twin is `quire.kernels.reference`, which is also used if there is no compiler. Nothing here
downloads anything.
"""
