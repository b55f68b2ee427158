"""`write(run_dir)` draws what a run wrote down as one self-contained `report.html`."""

from moejax.training.report.page import write
from moejax.training.report.token_kinds import KINDS, token_kinds

__all__ = ["KINDS", "token_kinds", "write"]
