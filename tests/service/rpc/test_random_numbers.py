"""Random ids and seeds are each given once, on whatever thread."""

from concurrent.futures import ThreadPoolExecutor

from quire.service.rpc.random_numbers import RandomNumbers


def test_no_id_is_given_twice_and_seeds_have_all_their_bits() -> None:
    numbers = RandomNumbers()
    with ThreadPoolExecutor(4) as pool:
        ids = list(pool.map(lambda _: numbers.id(), range(2000)))
    assert len(set(ids)) == len(ids)
    assert all(len(one) == 32 and int(one, 16) >= 0 for one in ids)
    seeds = {numbers.seed() for _ in range(200)}
    assert len(seeds) == 200
    assert 1 << 63 <= max(seeds) < 1 << 64
