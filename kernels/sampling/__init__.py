"""Logits to tokens: penalties, filters without a sort, greedy and Gumbel-max sampling."""
