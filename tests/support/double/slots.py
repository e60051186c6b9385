"""The slots of the double: so many calls at once, the others in a strict FIFO without a bound."""
import asyncio
from collections import deque
from contextlib import suppress


class Slots:
    """A semaphore with a strict FIFO whose size may change; a freed slot is handed to the first who waits."""

    def __init__(self, total):
        self.total, self.running, self.peak, self.queue = total, 0, 0, deque()

    async def acquire(self):
        """Take a slot, waiting for it if need be."""
        turn = asyncio.get_running_loop().create_future()
        self.queue.append(turn)
        self.hand_out()
        if turn.done():
            return
        try:
            await turn
        except asyncio.CancelledError:
            with suppress(ValueError):
                self.queue.remove(turn)
            if not turn.cancelled():
                self.release()
            raise

    def release(self):
        """Give a slot back."""
        self.running -= 1
        self.hand_out()

    def hand_out(self):
        """Give free slots to those who wait."""
        while self.queue and self.running < self.total:
            if not (turn := self.queue.popleft()).done():
                self.running += 1
                self.peak = max(self.peak, self.running)
                turn.set_result(None)
