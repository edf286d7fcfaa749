"""The figures of one burst of `bench ingest`: what was measured, as it is reported.

Stage: after a burst; values in, a report out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from loadtests.flood_process import Sent
from loadtests.ingest_marks import (
    Counters,
    Stored,
    lag_at_end_ms,
    left_late_ms,
    lost_readings,
    to_commit_ms,
    to_puback_ms,
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Finished:
    """A burst, drained and counted. Processor time and memory are by part."""

    name: str
    sent: Sent
    cpu_s: Mapping[str, float]
    elapsed_s: float
    drained_s: float
    memory_mib: Mapping[str, float]
    broker_store_bytes: int
    before: Counters
    after: Counters
    stored: Stored

    @property
    def lost(self) -> int:
        """Readings of acknowledged messages that are nowhere."""
        return lost_readings(self.sent, self.stored)

    @property
    def rows(self) -> int:
        """Readings of the burst that are stored."""
        return int(self.stored.readings.sum())

    @property
    def complete(self) -> bool:
        """Tell whether all that was offered was acknowledged and is stored."""
        return self.sent.pubacked == self.sent.part.count and self.rows == self.sent.part.readings

    @property
    def transactions(self) -> int:
        """Transactions that wrote batches."""
        return self.after.transactions - self.before.transactions

    @property
    def mean_batch(self) -> int:
        """Readings in a transaction, on the average."""
        totals = self.after.totals.since(self.before.totals)
        return max(1, round(totals.received / max(1, self.transactions)))

    @property
    def seconds_committed(self) -> float:
        """Time from the first publish to the last commit."""
        return max((int(self.stored.committed_us.max()) * 1_000 - self.sent.began_at_ns) / 1e9, 1e-6)

    @property
    def readings_per_second(self) -> float:
        """Readings stored a second, from the first publish to the last commit."""
        return self.rows / self.seconds_committed


def burst_figures(burst: Finished) -> dict[str, object]:
    """Return a burst's figures by name."""
    return (
        {"name": burst.name}
        | _counts(burst)
        | _pace(burst)
        | {
            "publish_to_puback_ms": to_puback_ms(burst.sent),
            "publish_to_commit_ms": to_commit_ms(burst.sent, burst.stored),
            "left_late_ms": left_late_ms(burst.sent),
        }
        | _cost(burst)
        | {"connections": dict(burst.sent.trouble)}
    )


def _counts(burst: Finished) -> dict[str, object]:
    sent, totals = burst.sent, burst.after.totals.since(burst.before.totals)
    return {
        "messages_offered": sent.part.count,
        "messages_published": sent.published,
        "messages_pubacked": sent.pubacked,
        "readings_offered": sent.part.readings,
        "readings_stored": burst.rows,
        "duplicate": totals.duplicate,
        "rejected": totals.rejected,
        "quarantined": totals.quarantined,
        "lost": burst.lost,
    }


def _pace(burst: Finished) -> dict[str, object]:
    sent = burst.sent
    return {
        "messages_per_second_asked": None if sent.rate is None else round(sent.rate),
        "messages_per_second_pubacked": round(sent.pubacked / max(sent.seconds_pubacked, 1e-6)),
        "messages_per_second_committed": round(burst.readings_per_second / sent.part.intervals),
        "readings_per_second_committed": round(burst.readings_per_second),
        "seconds_published": round(sent.seconds, 2),
        "seconds_pubacked": round(sent.seconds_pubacked, 2),
        "seconds_committed": round(burst.seconds_committed, 2),
        "lag_at_end_ms": round(lag_at_end_ms(sent, burst.stored), 1),
        "seconds_drained_after_last_puback": round(burst.drained_s, 2),
    }


def _cost(burst: Finished) -> dict[str, object]:
    before, after = burst.before, burst.after
    million, rows = max(burst.rows, 1) / 1e6, max(burst.rows, 1)
    syncs = after.syncs - before.syncs
    return {
        "cpu_seconds_per_million_readings": {name: round(used / million, 1) for name, used in burst.cpu_s.items()},
        "cores_used": {name: round(used / burst.elapsed_s, 2) for name, used in burst.cpu_s.items()},
        "memory_mib_most": {name: round(mib) for name, mib in burst.memory_mib.items()}
        | {"flood": burst.sent.peak_mib},
        "table_bytes_per_reading": round((after.readings_bytes - before.readings_bytes) / rows, 1),
        "wal_bytes_per_reading": round((after.wal_bytes - before.wal_bytes) / rows, 1),
        "wire_bytes_per_message": round(burst.sent.bytes_written / burst.sent.part.count),
        "broker_store_mib_at_last_puback": round(burst.broker_store_bytes / 2**20, 1),
        "checkpoints": after.checkpoints - before.checkpoints,
        "transactions": burst.transactions,
        "readings_per_transaction": burst.mean_batch,
        "wal_syncs": syncs,
        "wal_sync_ms_mean": round((after.sync_ms - before.sync_ms) / max(syncs, 1), 2),
        "alarms": after.alarms - before.alarms,
        "deadlocks": after.deadlocks - before.deadlocks,
    }
