"""The safetensors format, read with checks of our own and written in streams."""
