"""A page that loads pictures slowly skips some and shows the newest, without a browser."""

import asyncio
import re
import sys
import time
from itertools import pairwise

import pytest
from fixtures.studios import served
from folders import BENCHMARKS

pytest.importorskip("nicegui", reason="extra studio not installed")
sys.path.insert(0, str(BENCHMARKS))
from reading_client import ReadingClient  # noqa: E402

pytestmark = pytest.mark.slow
LOADING = 0.7  # s
RATE = 10  # steps a second of the toy


async def watch(address):
    """The pictures of a fast page, which drives, and of a slow one."""
    fast, slow = [], []
    async with (ReadingClient(address, on_picture=fast.append) as driver,
                ReadingClient(address, LOADING, slow.append)):
        await driver.press("Start showing")
        until = time.monotonic() + 6
        while time.monotonic() < until:
            await driver.hold(["ArrowRight"])
            await asyncio.sleep(0.05)
    return fast, slow


def step(picture):
    return int(re.fullmatch(r"step (\d+)", picture.text)[1])


def test_a_slow_page_shows_the_newest_picture(tmp_path):
    with served(tmp_path / "project", env="push") as address:
        fast, slow = ([p for p in pictures if p.text] for pictures in asyncio.run(watch(address)))
    assert len(fast) > 3 * len(slow) and len(slow) >= 4
    assert all(after.at - before.at >= LOADING for before, after in pairwise(slow))  # one is on its way at most
    for picture in slow[1:]:
        newest = max(step(p) for p in fast if p.at < picture.at - 2 / RATE)
        assert step(picture) >= newest
