"""`python -m tests` and the test target of BUILD: pytest with the arguments given."""

import sys

import pytest

if __name__ == "__main__":
    sys.exit(pytest.main(sys.argv[1:]))
