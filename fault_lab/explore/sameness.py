"""Which states are the same: a state's key. Two states with one key have the same future, up to names.

Everything in a world belongs to a vCPU, to a VM's agent, to a controller, or to the host as a whole. The key has a
bundle for each: where it is, its part of the host, its messages. With symmetry the bundles of a VM's vCPUs are sorted,
and then those of the VMs: guests that play the same in the same situation are interchangeable.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from fault_lab.explore.hosts import Hosts
from fault_lab.explore.people import People
from fault_lab.explore.requests import Message
from fault_lab.explore.state import State


class Sameness:
    """Makes keys, sorted ones. Without symmetry a state is its own key: names and times are not in it already."""

    def __init__(self, hosts: Hosts, people: People, *, in_order: bool) -> None:
        self._hosts = hosts
        self._people = people
        self._in_order = in_order
        self._vcpus = [hosts.cast.vcpus_of(vm) for vm in range(len(hosts.cast.vms))]
        self._classes = [hosts.piece(_class(vm.SerializeToString())) for vm in hosts.cast.vms]

    def key(self, state: State) -> Hashable:
        """The key of a state."""
        hosts, host, piece = self._hosts, state.host, self._hosts.piece
        bundles: list[list[Any]] = [[part, at] for part, at in zip(hosts.vcpus[host], state.vcpus, strict=True)]
        agents: list[list[Any]] = [
            [of, part, at] for of, part, at in zip(self._classes, hosts.vms[host], state.agents, strict=True)
        ]
        others: list[Any] = [hosts.rest[host], state.spent]
        for unsaid, messages in enumerate((state.flight, state.unsaid[0])):
            for order, message in enumerate(messages):
                place = order if self._in_order or unsaid else unsaid - 1
                self._bundle(message, (unsaid, place), bundles, agents, others)
        for nr, controller in enumerate(state.controllers):
            others.append((controller.life, controller.held))
            for vcpu, desk in enumerate(self._people.desk_pieces(nr, controller.desk)):
                bundles[vcpu].append(desk)
            for order, (vcpu, view) in enumerate(controller.news):
                bundles[vcpu].append((nr, order, hosts.view_pieces[view]))
        for order, (nr, vcpu, view) in enumerate(state.unsaid[1]):
            bundles[vcpu].append((nr, order, hosts.view_pieces[view], "unsaid"))
        if state.durable != host:
            others.append(hosts.rest[state.durable])
            for vcpu, part in enumerate(hosts.vcpus[state.durable]):
                bundles[vcpu].append(part)
            for vm, part in enumerate(hosts.vms[state.durable]):
                agents[vm].append(part)
        vms = [
            (piece(tuple(agents[vm])), *sorted(piece(tuple(bundles[vcpu])) for vcpu in vcpus))
            for vm, vcpus in enumerate(self._vcpus)
        ]
        return tuple(others), tuple(sorted(vms))

    def _bundle(
        self,
        message: Message,
        place: tuple[int, int],
        bundles: list[list[Any]],
        agents: list[list[Any]],
        others: list[Any],
    ) -> None:
        """Put a message to whom it belongs, without its name."""
        kind, who, life, what, more, fresh = message
        match kind:
            case "submit" | "wait":
                bundles[who].append((place, kind, life, what, more, fresh))
            case "answer":
                bundles[who].append((place, kind, life, self._hosts.reply_pieces[what], more))
            case "decide":
                vcpu, decided = self._people.decision_piece(what)
                bundles[vcpu].append((place, kind, who, life, decided, more))
            case "open":
                agents[who].append((place, kind, life, fresh))
            case "opened":
                agents[who].append((place, kind, life, self._hosts.reply_pieces[what]))
            case _:
                others.append((place, *message))


def _class(planned: bytes) -> Hashable:
    """What makes two VMs of a plan the same but for their name, which is the first field."""
    return planned[2 + planned[1] :] if planned else planned
