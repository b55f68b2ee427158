"""Pages: who holds what, what is found again, and what goes first."""

import collections

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moejax.errors import UsageError
from moejax.serving.pages import Pages


def names(pages: Pages, text) -> list[bytes]:
    found = []
    pages.extend_names(found, text)
    return found


def test_three_pages_by_hand():
    pages = Pages(3, size=2)
    assert [pages.needed(positions) for positions in (0, 1, 2, 3)] == [0, 1, 1, 2]
    assert pages.take(4) is None and pages.available == 3
    mine = pages.take(2)
    first, second = names(pages, [7, 7, 8, 8, 9])
    pages.publish(first, mine[0])
    pages.publish(second, mine[1])
    assert pages.find([first, second]) == mine and pages.used == 2
    pages.release(mine)
    pages.release(mine)
    assert pages.used == 0, "nobody uses them; they are still found"
    (other,) = pages.take(1)
    assert other not in mine, "empty pages go before those that are known"
    pages.take(1)
    assert pages.find([first, second]) == mine[:1], "the end of a text is forgotten before its beginning"


def test_a_name_is_of_the_whole_text_before():
    pages = Pages(1, size=2)
    alike, other = names(pages, [1, 2, 3, 4]), names(pages, [2, 1, 3, 4])
    assert len(alike) == 2 and not set(alike) & set(other)
    grown = names(pages, [1, 2, 3])
    pages.extend_names(grown, [1, 2, 3, 4, 5])
    assert grown == alike


def test_the_same_text_twice_is_found_once():
    pages = Pages(2, size=1)
    (name,) = names(pages, [5])
    a, b = pages.take(2)
    pages.publish(name, a)
    pages.publish(name, b)
    assert pages.find([name]) == [a]
    pages.release([b])
    assert pages.take(1) == [b]


def test_without_sharing_nothing_is_found():
    pages = Pages(1, size=1, sharing=False)
    (name,) = names(pages, [5])
    pages.publish(name, pages.take(1)[0])
    assert pages.find([name]) == []


def test_a_cache_of_nothing():
    with pytest.raises(UsageError, match="a cache of 0 pages of 16 positions holds nothing"):
        Pages(0, 16)


ACTIONS = st.sampled_from(["take", "publish", "find", "release"])


@given(
    st.lists(
        st.tuples(st.sampled_from(["take", "publish", "find", "release"]), st.integers(0, 5)), max_size=60
    )
)
def test_users_are_counted(actions):
    """Against a plain count of users: a page with users is never handed out, and none is lost."""
    pages = Pages(5, size=1)
    held: list[list[int]] = []
    for action, number in actions:
        users = collections.Counter(page for mine in held for page in mine)
        if action == "take" and (taken := pages.take(number)) is not None:
            assert not users.keys() & set(taken) and len(set(taken)) == number
            held.append(taken)
        elif action == "publish" and number < len(held):
            for name, page in zip(names(pages, range(number, 9)), held[number], strict=False):
                pages.publish(name, page)
        elif action == "find":
            held.append(pages.find(names(pages, range(number, 9))))
        elif action == "release" and number < len(held):
            pages.release(held.pop(number))
        assert pages.used == len({page for mine in held for page in mine})
    for mine in held:
        pages.release(mine)
    assert pages.available == 5
