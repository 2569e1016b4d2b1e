"""A bounded queue for the device: one image is embedded at a time, and few requests wait."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from fastapi import HTTPException


class Queue:
    """Requests that are received, wait or are computed. Beyond `places`, they are refused at once."""

    def __init__(self, places: int):
        self._free, self._turn = places, asyncio.Lock()

    @contextlib.asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Holds a place.

        Raises:
            HTTPException: 503 if none is free.
        """
        if not self._free:
            what = "Too many searches at once. Try again in a second."
            raise HTTPException(503, what, headers={"Retry-After": "1"})
        self._free -= 1
        try:
            yield
        finally:
            self._free += 1

    @contextlib.asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Waits until no other request is computed, in the order of arrival."""
        async with self._turn:
            yield
