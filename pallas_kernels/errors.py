"""What kernels say when they cannot do what they are asked."""


class NotServedError(NotImplementedError):
    """The implementation that was asked for cannot serve these operands; the text says why and what can."""
