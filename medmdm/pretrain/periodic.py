"""What is done before the first step, every so many steps, and after the last."""

from __future__ import annotations

from collections.abc import Mapping

from ignite.engine import Engine, Events

__all__ = ["Periodic"]


class Periodic:
    """A handler that calls itself at step 0 of a new run, at every multiple of ``every``, and after the last step."""

    every: int

    @staticmethod
    def leave(engine: Engine, scores: Mapping[str, float]) -> None:
        """Leave held-out scores for the log, beside those of other handlers."""
        engine.state.heldout = {**(getattr(engine.state, "heldout", None) or {}), **scores}

    def attach(self, engine: Engine) -> None:
        """Register the handler on a trainer; before the handler that writes the log, if it leaves scores there."""
        engine.add_event_handler(Events.STARTED, self.first)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.maybe)

    def first(self, engine: Engine) -> None:
        """Act on the untrained network, unless the run goes on from a checkpoint."""
        if engine.state.iteration == 0:
            self(engine)

    def maybe(self, engine: Engine) -> None:
        """Act if it is time."""
        if engine.state.iteration % self.every == 0 or engine.state.iteration == engine.state.epoch_length:
            self(engine)

    def __call__(self, engine: Engine) -> None:
        """Act."""
        raise NotImplementedError
