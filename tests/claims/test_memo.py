"""Claims keep the newest results of a process, and a probe meets none of them."""

import pytest

from understudy.claims.memo import Memo, empty_memos


def test_a_result_is_computed_once_and_the_oldest_goes_first():
    memo, computed = Memo(2), []
    for key in (1, 2, 1, 3, 2, 1):
        assert memo.get(key, lambda key=key: computed.append(key) or 10 * key) == 10 * key
    assert computed == [1, 2, 3, 1]


def test_a_computation_may_ask_for_others():
    """The stages of a method are trained while its own training is computed."""
    memo = Memo(1)
    assert memo.get("method", lambda: 2 * memo.get("stage", lambda: 3)) == 6
    assert memo.get("method", lambda: 0) == 6


def test_memos_are_empty_in_the_context_and_full_after_it_also_after_an_error():
    memo, other = Memo(), Memo()
    memo.get("a", lambda: 1)
    with pytest.raises(ZeroDivisionError), empty_memos():
        assert memo.get("a", lambda: 2) == memo.get("a", lambda: 3) == 2
        assert other.get("a", lambda: 4) == 4
        memo.get("a", lambda: 0), 1 / 0
    assert memo.get("a", lambda: 5) == 1 and other.get("a", lambda: 6) == 6
