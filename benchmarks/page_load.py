"""Load on `proxynca serve`: many clients search with photographs at once, for a limited time, on this machine only.

    python -m proxynca_jax.serve --index photos.lance --port 8000
    python -m benchmarks.page_load /data/photographs --port 8000 --clients 50 --seconds 60

Each client sends the next photograph as soon as it has an answer; after a refusal it waits as it is told.
Prints searches per second, latencies, refusals, and the memory of the server. docs/serve.md has results.
"""

import argparse
import asyncio
import itertools
import pathlib
import time

import httpx
import numpy as np
import psutil

MAX_SECONDS = 600


def main() -> None:
    """Runs the load."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("photographs", type=pathlib.Path)
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=60)
    options = parser.parse_args()
    seconds = min(options.seconds, MAX_SECONDS)
    photographs = [path.read_bytes() for path in sorted(options.photographs.rglob("*.jpg"))[::20][:200]]
    server = _server(options.port)
    before = server.memory_info().rss
    latencies, refusals = asyncio.run(_load(photographs, options.port, options.clients, seconds))
    after = server.memory_info().rss
    median, high = 1000 * np.percentile(latencies, [50, 95])
    print(
        f"{len(latencies) / seconds:.1f} searches/s, median {median:.0f} ms, 95th percentile {high:.0f} ms, "
        f"{refusals} refusals, server {before / 2**20:.0f} MiB before, {after / 2**20:.0f} MiB after"
    )


def _server(port: int) -> psutil.Process:
    connections = psutil.net_connections("tcp4")
    [number] = [held.pid for held in connections if held.status == "LISTEN" and held.laddr.port == port]
    return psutil.Process(number)


async def _load(photographs: list[bytes], port: int, clients: int, seconds: float) -> tuple[list[float], int]:
    latencies, refusals, end = list[float](), 0, time.monotonic() + seconds
    following = itertools.cycle(photographs)

    async def client() -> None:
        nonlocal refusals
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60) as session:
            while (start := time.monotonic()) < end:
                headers = {"Content-Type": "image/jpeg"}
                answer = await session.post("/api/search?k=24", content=next(following), headers=headers)
                if answer.status_code == 503:
                    refusals += 1
                    await asyncio.sleep(float(answer.headers["retry-after"]))
                    continue
                answer.raise_for_status()
                latencies.append(time.monotonic() - start)
                found = answer.json()["matches"]
                (await session.get(f"/thumbnail/{found[-1]['id']}")).raise_for_status()

    await asyncio.gather(*(client() for _ in range(clients)))
    return latencies, refusals


if __name__ == "__main__":
    main()
