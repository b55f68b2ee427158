"""Text from a model: requests, batched decoding, and the command line of `serve.py`."""
