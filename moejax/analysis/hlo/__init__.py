"""Reading XLA's optimised programs: `parse` the text, then price each operation."""
