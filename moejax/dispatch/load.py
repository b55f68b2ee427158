"""What one device hands to a dispatcher, in numbers: the argument of `collective_bytes` formulas."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Load:
    """Tokens of one device of an expert axis, and the layer that they meet."""

    devices: int  # P, along the expert axis
    tokens: int  # N, of one device
    slots: int  # K
    experts: int  # E, of all devices
    width: int  # D
    itemsize: int = 4  # bytes of one number of a row; gates and indices have 4
    slices: int = 1  # S, devices along the fsdp axis, where it cuts every expert
    parameters: int = 0  # of all experts, for a dispatch that moves them

    @property
    def rows(self) -> int:
        """N K: rows of one device when no slot is empty."""
        return self.tokens * self.slots

    @property
    def row_bytes(self) -> int:
        return self.width * self.itemsize

    def shares(self, chunks: int) -> list["Load"]:
        """The loads of the chunks into which `shards.on_every_device` cuts the tokens."""
        chunks = min(chunks, self.tokens)
        each, more = divmod(self.tokens, chunks)
        return [dataclasses.replace(self, tokens=each + (i < more)) for i in range(chunks)]
