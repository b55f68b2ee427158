"""Which page of the cache holds what: pages with counted users, shared where texts begin alike.

Efficient Memory Management for Large Language Model Serving with PagedAttention (Kwon et al. 2023,
arXiv 2309.06180). A page holds the keys and values of `size` positions in all layers. A page that is full and
whose content is known stays findable by the text that leads up to its end, also when nobody uses it any more,
until its room is needed: the one unused for longest goes first.
"""

import collections
from collections.abc import Hashable, Sequence

from moejax.config import require


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
        self._page_of: dict[Hashable, int] = {}  # by the text up to its end
        self._text_of: dict[int, Hashable] = {}
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

    def find(self, tokens: Sequence[int]) -> list[int]:
        """The pages that hold the beginning of a text, as many as there are; each has one user more.

        The last token's own page is never among them: somebody has to compute what follows it.
        """
        found = []
        for text in self._texts(tokens[:-1]) if self.sharing else ():
            page = self._page_of.get(text)
            if page is None:
                break
            self._idle.pop(page, None)
            self._users[page] += 1
            found.append(page)
        return found

    def known(self, tokens: Sequence[int]) -> int:
        """Positions of a text that `find` would find now; nothing is taken."""
        count = 0
        for text in self._texts(tokens[:-1]) if self.sharing else ():
            if text not in self._page_of:
                break
            count += 1
        return count * self.size

    def publish(self, tokens: Sequence[int], pages: Sequence[int]) -> None:
        """Make findable those of `pages` that are full; they hold `tokens`, in every layer."""
        if not self.sharing:
            return
        for text, page in zip(self._texts(tokens), pages, strict=False):
            if text not in self._page_of and page not in self._text_of:
                self._page_of[text], self._text_of[page] = page, text

    def release(self, pages: Sequence[int]) -> None:
        """One user less for each; the end of a text is let go before its beginning."""
        for page in reversed(pages):
            self._users[page] -= 1
            if self._users[page] == 0:
                del self._users[page]
                if page in self._text_of:
                    self._idle[page] = None
                else:
                    self._free.append(page)

    def _texts(self, tokens: Sequence[int]):
        """A name for the text up to the end of each full page: the page's tokens and the name before it."""
        text = None
        for end in range(self.size, len(tokens) + 1, self.size):
            text = (text and hash(text), tuple(tokens[end - self.size : end]), end)
            yield text

    def _evict(self) -> int:
        page, _ = self._idle.popitem(last=False)
        del self._page_of[self._text_of.pop(page)]
        return page
