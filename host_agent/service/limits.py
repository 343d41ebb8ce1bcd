"""What the service does not go beyond: the numbers behind GetHostInfoResponse.limits that are not the machine's."""

from __future__ import annotations

from typing import Final

#: Events of one batch; what comes in one message is applied in one go, and nothing else happens meanwhile.
EVENTS_PER_BATCH_MAX: Final = 4096
#: Events of one session without a final outcome, where there are few sessions: service/credits.py.
CREDITS_MAX: Final = 4096
#: A message to the host, in bytes: gRPC's own default. A batch of 450 whole XTILE_DATA components (8 KiB each) fits.
MESSAGE_BYTES_MAX: Final = 4 * 1024 * 1024
#: The bytes of a SetXsave: five times what any processor here has. The call is remembered with its request id.
XSAVE_BYTES_MAX: Final = 65_536
#: How much register data one stream message from the host carries at most, in bytes: a client's default limit is 4 MiB.
OUTCOME_BYTES_MAX: Final = 1024 * 1024
#: Outcomes in one stream message from the host.
OUTCOMES_PER_MESSAGE_MAX: Final = 1024
#: What may wait to be written on one Attach stream, in outcomes and directives, before the reader is given up.
OUTBOX_MAX: Final = 65_536
#: Changes that may wait to be written on one WatchExits stream before the watcher is given up and has to list again.
WATCH_QUEUE_MAX: Final = 1024
#: What Watch remembers for those who come back or read slowly: changes, and bytes of their resources.
HISTORY_MAX: Final = 16_384
HISTORY_BYTES_MAX: Final = 16 * 1024 * 1024
#: How long changes are kept after the last list or watch, in nanoseconds: whoever lists may watch from there.
HISTORY_KEPT_NS: Final = 60_000_000_000
WATCH_FILTERS_MAX: Final = 64
#: The bounds of what a watcher may wish for, in seconds.
BOOKMARK_INTERVAL_MIN_S: Final = 0.1
BOOKMARK_INTERVAL_MAX_S: Final = 3600.0
#: A stream whose client takes no message for so long, in seconds, is cancelled.
PATIENCE_S: Final = 60.0
PAGE_SIZE_DEFAULT: Final = 100
PAGE_SIZE_MAX: Final = 1000
#: The reason of a decision, in characters: so many are kept for as long as the audit keeps the decision.
REASON_MAX: Final = 512
#: Deadline of a unary call that came without one, in seconds.
CALL_DEADLINE_S: Final = 60.0
#: How old a stream becomes before its client has to come back on a new one, in seconds; a tenth more or less each time.
STREAM_MAX_AGE_S: Final = 1800.0
#: How long an Attach stream may say nothing before its `hello`, in seconds.
HELLO_DEADLINE_S: Final = 10.0
#: The shortest lease that is granted, in nanoseconds; a shorter wish is granted this.
LEASE_MIN_NS: Final = 1_000_000
#: The longest grace of a drain, in seconds.
GRACE_MAX_S: Final = 3600.0
#: A watcher that hears nothing else hears this often that nothing has happened, in seconds.
BOOKMARK_INTERVAL_S: Final = 10.0
