"""Heat maps colour each share by how far it is from even."""

import base64
import re
import zlib

import numpy as np

from moejax.report import heat_map


def pixels(uri):
    """RGBA rows of a PNG as the report writes them."""
    data = base64.b64decode(uri.split(",")[1])
    columns, rows = (int.from_bytes(data[16 + 4 * i : 20 + 4 * i], "big") for i in range(2))
    size = int.from_bytes(data[33:37], "big")
    raw = np.frombuffer(zlib.decompress(data[41 : 41 + size]), np.uint8).reshape(rows, 1 + 4 * columns)
    assert not raw[:, 0].any()
    return raw[:, 1:].reshape(rows, columns, 4)


def test_strip_colours_by_hand():
    load_SE = np.array([[0.25, 0.75], [0.5, 0.5], [0.0, 1.0]])  # times E = 2: 0.5 1.5 | 1 1 | 0 2
    drawn = heat_map.strip("layer 0", np.array([10, 20, 30]), load_SE)
    picture = pixels(re.search(r'href="([^"]+)"', drawn).group(1))
    assert picture.shape == (2, 3, 4)  # a row per expert, a column per report
    assert picture[0, 0].tolist() == [*heat_map.BELOW, 128]  # half of the even share: one octave of two
    assert picture[1, 2].tolist() == [*heat_map.ABOVE, 128]
    assert picture[0, 2].tolist() == [*heat_map.BELOW, 255]
    assert picture[:, 1, 3].tolist() == [0, 0]
