"""Attributes, scopes and windows of faults.

A value that cannot be right raises ``FaultAttributeError``, whose ``field`` is the path that it was read under.
"""

from __future__ import annotations

from fpstate.fault.v1 import fault_pb2

from fault_lab.injection.attributes import FaultAttributeError, FaultAttributes
from fault_lab.injection.hit import Selector, Window
from fault_lab.wire.duration import DAY_NS, duration, duration_ns


def attributes_from_proto(path: str, message: fault_pb2.FaultAttributes) -> FaultAttributes:
    """Read FaultAttributes: absent ones have the wire's defaults, an interval of 0 means each hit, as 1 does."""
    if message.HasField("fail_nth") and message.fail_nth == 0:
        raise FaultAttributeError(f"{path}.fail_nth", "1 or more", 0)
    optional = ("probability_ppm", "times", "verbose", "verbose_ratelimit_burst", "stacktrace_depth")
    present = {field.name for field, _ in message.ListFields()}
    default = FaultAttributes()
    try:
        return FaultAttributes(
            **{name: getattr(message if name in present else default, name) for name in optional},
            interval=message.interval or 1,
            space=message.space,
            fail_nth=message.fail_nth,
            seed=message.seed,
            verbose_ratelimit_interval_ms=message.verbose_ratelimit_interval_ms,
            task_filter=message.task_filter,
            require=tuple(message.require),
            reject=tuple(message.reject),
            min_order=message.min_order,
            ignore_gfp_wait=message.ignore_gfp_wait,
            ignore_gfp_highmem=message.ignore_gfp_highmem,
            should_fail_order=message.should_fail_order or default.should_fail_order,
        )
    except FaultAttributeError as error:
        raise FaultAttributeError(f"{path}.{error.field}", error.expected, error.got) from error


def attributes_to_proto(attributes: FaultAttributes) -> fault_pb2.FaultAttributes:
    """Write FaultAttributes; ``times`` and ``space`` are what is left of them. What stands at its default stays out."""
    default = FaultAttributes()
    shown = {"probability_ppm", "interval", "times"}
    made = fault_pb2.FaultAttributes()
    for field in made.DESCRIPTOR.fields:
        value = getattr(attributes, field.name)
        if field.name in shown or value != getattr(default, field.name):
            if isinstance(value, tuple):
                getattr(made, field.name).extend(value)
            else:
                setattr(made, field.name, value)
    return made


def selector_from_proto(scope: fault_pb2.FaultScope) -> Selector:
    """Read the part of a FaultScope that hits are compared with; `owner` is the fault's own."""
    return Selector(
        vm=scope.vm,
        vcpu=scope.vcpu,
        entity=scope.entity,
        trigger=scope.trigger,
        xfeatures=scope.xfeatures,
        among=tuple(scope.among),
    )


def scope_to_proto(selector: Selector, owner: str = "") -> fault_pb2.FaultScope:
    """Write a FaultScope."""
    return fault_pb2.FaultScope(
        vm=selector.vm,
        vcpu=selector.vcpu,
        owner=owner,
        entity=selector.entity,
        trigger=selector.trigger,
        xfeatures=selector.xfeatures,
        among=selector.among,
    )


def window_from_proto(path: str, message: fault_pb2.FaultWindow) -> Window:
    """Read a FaultWindow, which has to be open for a while."""
    most = 10_000 * DAY_NS
    after = duration_ns(f"{path}.after", message.after, most=most)
    until = (
        duration_ns(f"{path}.until", message.until, least=after + 1, most=most) if message.HasField("until") else None
    )
    until_events = message.until_events if message.HasField("until_events") else None
    if until_events is not None and until_events <= message.after_events:
        raise FaultAttributeError(f"{path}.until_events", f"more than {message.after_events}", until_events)
    return Window(after_ns=after, until_ns=until, after_events=message.after_events, until_events=until_events)


def window_to_proto(window: Window) -> fault_pb2.FaultWindow:
    """Write a FaultWindow."""
    made = fault_pb2.FaultWindow(after_events=window.after_events, until_events=window.until_events)
    if window.after_ns:
        made.after.CopyFrom(duration(window.after_ns))
    if window.until_ns is not None:
        made.until.CopyFrom(duration(window.until_ns))
    return made
