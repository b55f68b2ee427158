"""Models of other libraries, and the way there and back."""
