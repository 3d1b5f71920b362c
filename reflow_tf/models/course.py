"""How shards of inputs are led through a network by whoever computes: in which parts, how far, and what is kept.

Inputs come in *shards*, and whoever computes leads them from where they were left to the step that is asked
for. They are left at the last place where what lies between the steps fits into memory for all of them; what does not
even fit at the narrowest place is kept on disk. Sums are put together in the order of shards, and of many shards in
*bundles*, whose number has a limit: what comes of it depends on the inputs alone, and neither on who computes nor on
what is kept.
"""

from typing import Any

from reflow_tf.crew import Crew, Site
from reflow_tf.errors import InputError
from reflow_tf.models.ledger import Held
from reflow_tf.models.sidebyside import Networks
from reflow_tf.models.streaming import Leg, Values

MOST_BUNDLES = 512
"""Of shards, whose sums are sent to be put together: up to so many shards, each is one."""
_ITEM_BYTES = 4  # of a float32


class Course:
    """Shards and their views on the way through the dense and the pruned network.

    Args:
        site: where a `Stream` leads them.
        crew: whose site it is.
        networks: both.
        held: of the model, as `measure_held` finds it.
        num_inputs: in all shards together.
        memory_budget: bytes of a machine; half of it may hold what lies between steps from one pass to the next.
        at_a_time: inputs that are led through the widest step together.
        shard: inputs of a shard, as the `Stream` has it.

    Attributes:
        num_inputs: as given.
        num_shards: that they are.

    Raises:
        InputError: no room for one shard.
    """

    def __init__(
        self,
        site: Site,
        crew: Crew,
        networks: Networks,
        held: Held,
        num_inputs: int,
        memory_budget: int,
        at_a_time: int,
        shard: int,
    ):
        self._site, self._networks, self._held = site, networks, held
        self._num_workers = crew.num_workers
        self._most_bytes = memory_budget / crew.crowding / 2
        needed = crew.crowding * _ITEM_BYTES * (shard * held.between[0] + 2 * at_a_time * max(held.during))
        if memory_budget < needed:
            raise InputError(
                f"--memory_budget must be at least {needed:,} for this network, which is what {shard} inputs "
                f"and what its widest layer makes of {at_a_time} of them take"
                f"{f' in each of {crew.crowding} workers' if crew.crowding > 1 else ''}. "
                f"Received: {memory_budget:,}"
            )
        self.num_inputs, self._shard = num_inputs, shard
        self.num_shards = -(-num_inputs // shard)
        self._bundle = -(-self.num_shards // MOST_BUNDLES)
        self._num_led, self._num_views = 0, 0
        self._furthest = 0

    def add(self, num_shards: int, num_views: int = 0) -> None:
        """From now on the first so many shards are led, and so many views of each."""
        self._num_led, self._num_views = num_shards, num_views

    def gather(self, position: int, moved: Values = ()) -> tuple[Any, Any]:
        """Leads all shards up to a step, the step itself left out, and sums up what is measured there.

        Args:
            position: of the step.
            moved: what has been written into the model since the last time.

        Returns:
            The sums over shards that are taken as they are, and over their views; None where there are none.
        """
        if moved:
            self._site.tell(moved)
        self._furthest = stop = self._choose_stop(position)
        fits = self._count_bytes(stop) <= self._most_bytes
        starts = range(0, self._num_led, self._bundle)
        numbers = (tuple(range(start, min(start + self._bundle, self._num_led))) for start in starts)
        legs = [Leg(some, self._num_views, position, stop, fits) for some in numbers]
        found = self._site.map(legs, home=lambda leg: leg.numbers[0] // self._bundle)
        own, varied = None, None
        for some, others in found:  # as they come: not all of them are in memory at once
            own = some if own is None else own + some
            varied = others if varied is None else varied + others
        return own, varied

    def _choose_stop(self, position: int) -> int:
        """Where all shards are left this time: at the last place that fits, else at the narrowest."""
        places = range(self._furthest, position + 1)
        fitting = [place for place in places if self._count_bytes(place) <= self._most_bytes]
        return fitting[-1] if fitting else min(places, key=lambda place: (self._held.between[place], -place))

    def _count_bytes(self, position: int) -> int:
        """What one worker holds of its shards before this step, at most."""
        differ = any(self._networks.differ_at(index) for index in range(position))
        bundles = -(-self._num_led // self._bundle)
        shards = min(self._num_led, -(-bundles // self._num_workers) * self._bundle) * (1 + self._num_views)
        return (2 if differ else 1) * _ITEM_BYTES * self._held.between[position] * self._shard * shards
