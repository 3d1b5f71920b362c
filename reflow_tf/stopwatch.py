"""How long each stage of a run took."""

import contextlib
import time
from collections.abc import Iterator


class Stopwatch:
    """Attributes: seconds: stage -> wall-clock seconds, in the order in which the stages ended."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Adds the time that the block takes to the stage, also if the block fails."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start
