"""Three NATS servers as one cluster on loopback, with replicated streams and an MQTT listener each, for tests.

The configuration is what docs/operations.md asks of a production cluster: replicas for the MQTT streams and
consumers, and the subject mappings on every server.
"""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from nats.aio.client import Client
from nats.aio.msg import Msg

from headend.edges.stream import SUBJECT_MAPPINGS
from headend.edges.stream_setup import LANE_CONSUMERS
from prepaid.embedded.nats import nats_binary
from prepaid.embedded.process import LOOPBACK, accepts, log_tail, spawn, stable_ports, stop_child

SERVERS: Final = 3
# Each lane is a stream with a leader of its own; this one is looked at.
STREAM: Final = LANE_CONSUMERS[0]
# An election takes seconds on two busy cores; ten times that.
READY_S: Final = 60.0
_LADDER: Final = ((signal.SIGTERM, 20.0), (signal.SIGKILL, 5.0))


class NatsCluster:
    """A cluster on a folder. Invariants: only processes started here are signalled; ports stay as they are."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        kinds = ("client", "mqtt", "route")
        self._ports = stable_ports(folder / "ports.json", [f"{k}-{n}" for n in range(SERVERS) for k in kinds])
        self._children: dict[int, subprocess.Popen[bytes]] = {}

    @property
    def nats_url(self) -> str:
        """All servers, as PREPAID_NATS_URL names them."""
        return ",".join(f"nats://{LOOPBACK}:{self._ports[f'client-{number}']}" for number in range(SERVERS))

    @property
    def mqtt_host(self) -> str:
        """Where all MQTT listeners are."""
        return LOOPBACK

    @property
    def mqtt_port(self) -> int:
        """The MQTT listener of the first server that runs."""
        return self.mqtt_ports[0]

    @property
    def mqtt_ports(self) -> list[int]:
        """The MQTT listeners of the servers that run."""
        return [self._ports[f"mqtt-{number}"] for number in sorted(self._children)]

    def pid(self, number: int) -> int:
        """Return the process id of a server that runs."""
        return self._children[number].pid

    def start(self, number: int) -> None:
        """Run one server on its folder, with what it stored before."""
        home = self._folder / f"s{number}"
        home.mkdir(exist_ok=True)
        config = home / "nats.conf"
        config.write_text(self._config(number, home))
        command = [str(nats_binary()), "-c", str(config)]
        self._children[number] = spawn(command, log_path=home / "nats.log", death_signal=signal.SIGTERM)

    def kill(self, number: int) -> None:
        """End a server without warning."""
        child = self._children.pop(number)
        child.kill()
        child.wait()

    def __enter__(self) -> Self:
        try:
            for number in range(SERVERS):
                self.start(number)
            asyncio.run(self._await_leader())
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop all servers."""
        for number in list(self._children):
            stop_child(self._children.pop(number), name=f"nats-{number}", ladder=_LADDER)

    async def stream_cluster(self) -> dict[str, Any]:
        """Return what the cluster says of the first lane's stream: leader and replicas."""
        answer = await self._ask(f"STREAM.INFO.{STREAM}")
        return dict(answer["cluster"]) | {"num_replicas": answer["config"]["num_replicas"]}

    async def leader(self) -> int:
        """Return the number of the server that leads the first lane's stream."""
        return int(str((await self.stream_cluster())["leader"]).removeprefix("s"))

    @asynccontextmanager
    async def elections(self, *, beside: int) -> AsyncIterator[list[int]]:
        """Collect which servers are elected to lead the first lane's stream, as any server but one tells it."""
        elected: list[int] = []

        async def note(message: Msg) -> None:
            elected.append(int(json.loads(message.data)["leader"].removeprefix("s")))

        client = Client()
        await client.connect(self._urls(beside=beside), allow_reconnect=False)
        try:
            await client.subscribe(f"$JS.EVENT.ADVISORY.STREAM.LEADER_ELECTED.{STREAM}", cb=note)
            await client.flush()
            yield elected
        finally:
            await client.close()

    def _urls(self, *, beside: int | None = None) -> list[str]:
        return [f"nats://{LOOPBACK}:{self._ports[f'client-{n}']}" for n in sorted(self._children) if n != beside]

    async def _ask(self, what: str) -> dict[str, Any]:
        client = Client()
        await client.connect(self._urls(), allow_reconnect=False)
        try:
            answer = await client.request(f"$JS.API.{what}", timeout=5)
            return dict(json.loads(answer.data))
        finally:
            await client.close()

    async def _await_leader(self) -> None:
        """Wait until all listeners accept and the servers agree on who keeps the account of streams."""
        deadline_s = time.monotonic() + READY_S
        while True:
            logs = [log_tail(self._folder / f"s{number}" / "nats.log") for number in range(SERVERS)]
            assert time.monotonic() < deadline_s, f"cluster not ready within {READY_S:.0f} s: {logs}"
            if all(map(accepts, [*self._ports.values()])):
                try:
                    if "error" not in await self._ask("INFO"):
                        return
                except Exception:  # noqa: BLE001  # Whatever it is, it is asked again until the deadline.
                    pass
            await asyncio.sleep(0.1)

    def _config(self, number: int, home: Path) -> str:
        routes = ", ".join(f'"nats://{LOOPBACK}:{self._ports[f"route-{n}"]}"' for n in range(SERVERS) if n != number)
        mappings = "\n".join(f"  {json.dumps(a)}: {json.dumps(b)}" for a, b in SUBJECT_MAPPINGS.items())
        return f"""\
server_name: s{number}
host: {LOOPBACK}
port: {self._ports[f"client-{number}"]}
jetstream {{ store_dir: {json.dumps(str(home / "store"))} }}
cluster {{
  name: prepaid
  host: {LOOPBACK}
  port: {self._ports[f"route-{number}"]}
  routes: [{routes}]
}}
mqtt {{
  host: {LOOPBACK}
  port: {self._ports[f"mqtt-{number}"]}
  stream_replicas: {SERVERS}
  consumer_replicas: {SERVERS}
}}
mappings = {{
{mappings}
}}
"""
