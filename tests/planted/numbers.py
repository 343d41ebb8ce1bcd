"""Bugs of sessions, leases, numbers and request ids: who is heard, and how often what was said is done."""

from __future__ import annotations

from typing import Final

from tests.museum.mutant import Patch
from tests.planted.bug import Bug

BUGS: Final = (
    Bug(
        id="stale-epoch",
        title="A session keeps its vCPUs when a newer one takes them over",
        checks=frozenset({"epochs-fence", "invariants"}),
        plan="links",
        patches=(Patch("host_agent.sessions", "        side.session.vcpus.pop(name, None)\n", ""),),
    ),
    Bug(
        id="same-epoch",
        title="Every session and every control has the same epoch",
        checks=frozenset({"epochs-rise", "acknowledged-is-there"}),
        plan="links",
        patches=(Patch("host_agent.state", "        self.epoch += 1\n", "        self.epoch = 1\n"),),
    ),
    Bug(
        id="epochs-begin-anew",
        title="A host that comes back hands its epochs out from 1 again",
        checks=frozenset({"epochs-rise", "acknowledged-is-there"}),
        plan="restarts",
        patches=(
            Patch(
                "host_agent.boot", "    state.draining = False\n", "    state.draining = False\n    state.epoch = 0\n"
            ),
        ),
    ),
    Bug(
        id="repeated-number-taken",
        title="An event that is sent again is taken once more",
        checks=frozenset({"repeated-once", "numbers-once", "final-once"}),
        plan="links",
        patches=(
            Patch(
                "host_agent.sessions",
                "    if event.seq < side.next_seq:\n        return _repeated(side, event)\n",
                "    if event.seq < side.next_seq - 1 or (side.exit is not None and event.seq < side.next_seq):\n"
                "        return _repeated(side, event)\n",
            ),
        ),
    ),
    Bug(
        id="outcome-forgotten-early",
        title="What is being received is forgotten with what was: an agent that asks again hears nothing",
        checks=frozenset({"guests-end", "session-goes-on", "repeated-once", "final-once", "guest-sees-its-bytes"}),
        plan="links",
        patches=(
            Patch(
                "host_agent.sessions",
                "if seq <= through and outcome.final]:",
                "if seq <= through + 1 and outcome.final]:",
            ),
        ),
    ),
    Bug(
        id="pending-not-told",
        title="A new session does not hear of the event that is pending, and sends the next one",
        checks=frozenset({"guests-end", "guest-sees-its-bytes", "session-goes-on"}),
        plan="links",
        patches=(
            Patch(
                "host_agent.sessions",
                "    pending = last if last is not None and not last.final else None\n",
                "    pending = None\n",
            ),
        ),
    ),
    Bug(
        id="lost-wake-up",
        title="Who waits for an outcome is not told of one that is there already",
        checks=frozenset({"guests-end"}),
        plan="wakeup",
        patches=(
            Patch(
                "fault_lab.sim.services",
                "        if outcome.final:\n            return wire.guest_outcome(outcome)\n        self._waits",
                "        self._waits",
            ),
        ),
    ),
    Bug(
        id="final-told-twice",
        title="A vCPU that is killed takes back the outcome that its last event has had",
        checks=frozenset({"final-once"}),
        plan="links",
        patches=(
            Patch(
                "host_agent.directives",
                "        if pending is not None and isinstance(pending.kind, PendingOutcome):\n",
                "        if pending is not None:\n",
            ),
        ),
    ),
    Bug(
        id="keep-alive-in-vain",
        title="A keep-alive does not renew the lease of its session",
        checks=frozenset({"leases-kept"}),
        plan="links",
        patches=(
            Patch(
                "host_agent.sessions",
                "    session.expires_ns = state.now_ns + session.lease_ns\n    return session.lease_ns\n",
                "    return session.lease_ns\n",
            ),
        ),
    ),
    Bug(
        id="renewal-in-vain",
        title="A controller that renews its control loses it all the same",
        checks=frozenset({"leases-kept"}),
        plan="controllers",
        patches=(Patch("host_agent.control", "    record.expires_ns = state.now_ns + record.lease_ns\n", ""),),
    ),
    Bug(
        id="lease-without-end",
        title="The session of an agent that is silent never ends",
        checks=frozenset({"leases-kept"}),
        plan="links",
        patches=(
            Patch(
                "host_agent.timers",
                "        end_session(state, session, expired=True)\n",
                "        session.expires_ns += session.lease_ns\n",
            ),
        ),
    ),
    Bug(
        id="hidden-state",
        title="A lease depends on how often the process has renewed one, which no log holds",
        checks=frozenset({"recovered-same-outcomes", "recovered-same-digest", "leases-kept"}),
        plan="restarts",
        patches=(
            Patch(
                "host_agent.sessions",
                "    return session.lease_ns\n\n\ndef close_session",
                "    return session.lease_ns + next(_renewed)\n\n\n_renewed = itertools.count()\n\n\ndef close_session",
            ),
            Patch(
                "host_agent.sessions",
                "from dataclasses import dataclass\n",
                "import itertools\nfrom dataclasses import dataclass\n",
            ),
        ),
    ),
    Bug(
        id="requests-forgotten",
        title="A host that comes back has forgotten which requests it has done, and does them again",
        checks=frozenset({"repeated-once"}),
        plan="restarts",
        patches=(
            Patch(
                "host_agent.boot",
                "    state.draining = False\n",
                "    state.draining = False\n    state.requests.clear()\n",
            ),
        ),
    ),
    Bug(
        id="request-answered-wrongly",
        title="A request that is repeated has the answer of the oldest one",
        checks=frozenset({"repeated-once"}),
        plan="links",
        patches=(
            Patch(
                "host_agent.machine",
                "            return reply\n        reply = self._handle(command)\n",
                "            return next(iter(self.state.requests.values()))[1]\n"
                "        reply = self._handle(command)\n",
            ),
        ),
    ),
    Bug(
        id="number-anew",
        title="An agent that has heard nothing sends its event again under the next number: it happens twice",
        checks=frozenset({"heard-in-order", "guest-sees-its-bytes", "numbers-once"}),
        plan="links",
        patches=(
            Patch(
                "fault_lab.sim.guest",
                "        def call(key: SessionKey) -> Call:\n            batch = c.SubmitBatch(",
                "        asked: list[int] = []\n\n"
                "        def call(key: SessionKey) -> Call:\n"
                "            nonlocal seq, sent\n"
                "            asked.append(seq)\n"
                "            if len(asked) > 1:\n"
                "                seq = port.ledger.take(event)\n"
                "                sent = HostEvent(port.vcpu, seq, sent.kind)\n"
                "            batch = c.SubmitBatch(",
            ),
        ),
    ),
)
