"""Which page of the cache holds what: pages with counted users, shared where texts begin alike.

Efficient Memory Management for Large Language Model Serving with PagedAttention (Kwon et al. 2023,
arXiv 2309.06180). A page holds the keys and values of `size` positions in all layers. A page that is full has
a name, a digest of the whole text that leads up to its end, and stays findable by it also when nobody uses it
any more, until its room is needed: the one unused for longest goes first.
"""

import array
import collections
import hashlib
from collections.abc import Sequence

from moejax.config import require

DIGEST = 16  # bytes; long enough that no two texts ever meet, by chance or by design


class Pages:
    """The pool of pages. Numbers of pages run from 0 to `count` - 1.

    Args:
      count: pages there are.
      size: positions of a page.
      sharing: find pages by what they hold.
    """

    def __init__(self, count: int, size: int, sharing: bool = True):
        require(count >= 1 and size >= 1, f"a cache of {count} pages of {size} positions holds nothing")
        self.count, self.size, self.sharing = count, size, sharing
        self._free = list(range(count - 1, -1, -1))
        self._users = collections.Counter()
        self._page_of: dict[bytes, int] = {}  # by name
        self._name_of: dict[int, bytes] = {}
        self._idle: collections.OrderedDict[int, None] = collections.OrderedDict()  # findable, without users

    @property
    def available(self) -> int:
        """Pages that can be taken: empty ones, and those that nobody uses."""
        return len(self._free) + len(self._idle)

    @property
    def used(self) -> int:
        """Pages with at least one user."""
        return self.count - self.available

    def needed(self, positions: int) -> int:
        """Pages that hold so many positions."""
        return -(-positions // self.size)

    def take(self, count: int) -> list[int] | None:
        """So many pages for one more user, content unknown; None, and nothing taken, if there are fewer."""
        if count > self.available:
            return None
        taken = [self._free.pop() if self._free else self._evict() for _ in range(count)]
        self._users.update(taken)
        return taken

    def extend_names(self, names: list[bytes], text: Sequence[int]) -> None:
        """Add to the names of a text's first pages those of all pages that it fills."""
        for start in range(len(names) * self.size, len(text) - self.size + 1, self.size):
            page = array.array("q", text[start : start + self.size]).tobytes()
            before = names[-1] if names else b""
            names.append(hashlib.blake2b(before + page, digest_size=DIGEST).digest())

    def find(self, names: Sequence[bytes]) -> list[int]:
        """The pages of the beginning of a text, as many as there are; each has one user more."""
        found = []
        for name in names if self.sharing else ():
            page = self._page_of.get(name)
            if page is None:
                break
            self._idle.pop(page, None)
            self._users[page] += 1
            found.append(page)
        return found

    def publish(self, name: bytes, page: int) -> None:
        """Make a page findable, unless another one of that name is."""
        if self.sharing and name not in self._page_of and page not in self._name_of:
            self._page_of[name], self._name_of[page] = page, name

    def release(self, pages: Sequence[int]) -> None:
        """One user less for each; the end of a text is let go before its beginning."""
        for page in reversed(pages):
            self._users[page] -= 1
            if self._users[page] == 0:
                del self._users[page]
                if page in self._name_of:
                    self._idle[page] = None
                else:
                    self._free.append(page)

    def _evict(self) -> int:
        page, _ = self._idle.popitem(last=False)
        del self._page_of[self._name_of.pop(page)]
        return page
