"""Collections that are put off come again, whatever happens meanwhile."""

import gc

import pytest

from quire.engine.loop import garbage


def test_collections_are_put_off_for_as_long_as_imports_take() -> None:
    frozen = gc.get_freeze_count()
    with garbage.put_off():
        assert not gc.isenabled()
        with garbage.put_off():
            pass
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(ImportError), garbage.put_off():
        raise ImportError
    assert gc.isenabled()
    assert gc.get_freeze_count() == frozen
    with garbage.put_off_for_good():
        assert not gc.isenabled()
    assert gc.isenabled()
    assert gc.get_freeze_count() > frozen
    gc.unfreeze()
