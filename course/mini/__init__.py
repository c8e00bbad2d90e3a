"""A small inference engine in plain PyTorch, built chapter by chapter.

    chapter 1   config, weights, layers, model    one token by hand
    chapter 2   memory                            keys and values kept
    chapter 3   pages                             the same in pages
    chapter 4   tiles, kernels                    attention without its square of scores
    chapter 5   paged                             one new token a row, over pages
    chapter 6   scheduler, engine                 batching without phases
    chapter 7   prefix                            pages that are found again
    chapter 12  chance                            a token drawn, not only the likeliest

Invariant: the tokens are those of transformers and of Quire, one by one; only the time and the
memory that they take differ from chapter to chapter. Everything is float32 and runs on a CPU.
"""
