"""A valid call of every method, as texts: who calls, what, and with which request as JSON.

`$session`, `$epoch`, `$control`, `$control_epoch`, `$exit`, `$generation`, `$fault`, `$migration` and
`$ownership_epoch` are the newest that the host has said; `$once` is the block's own. A line that begins with `?` may be
refused, for what an earlier block has left or for what the line itself lacks. Lines of one stream are one request each,
`|` before those after the first.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import dataclass
from string import Template
from typing import Final

from google.protobuf import json_format

from tests.fuzz.methods import full_path, request_class
from tests.fuzz.vocabulary import Vocabulary

#: Who the short names of the tour are. The guest's own VMs are the tour's; the stranger's is another.
IDENTITIES: Final = {
    "operator": "operator/fuzz",
    "guest": "guest/fuzz/vms/prey-0/prey-1/prey-2",
    "stranger": "guest/stranger",
    "controller": "controller/fuzz",
    "fault": "fault/fuzz",
}
#: Who can do nothing to a VM that is not its own, whatever it sends.
OUTSIDERS: Final = ("guest", "stranger")

_TOUR: Final = """
operator HostService/GetHostInfo {}
operator HostService/UpdateHost {"settings": {"byteLimit": "100000000"}, "updateMask": "byteLimit"}
fault FaultService/ResetFaults {}
?operator VmService/DeleteVm {"name": "vms/prey-0", "force": true}
?operator VmService/DeleteVm {"name": "vms/prey-1", "force": true}
guest VmService/CreateVm {"vmId": "prey-0", "vm": {"profile": "sapphire-rapids", "byteLimit": "1000000", "labels": {"a": "b"}, "owner": {"pid": 1, "name": "x"}}, "requestId": "$once"}
guest VmService/CreateVm {"vmId": "prey-1", "vm": {"kernelRules": "6.12", "allocationPolicy": "ALLOCATION_POLICY_ON_WRITE", "hasProtectedState": true}}
?guest VmService/CreateVm {"vmId": "prey-2", "vm": {"cpuidDump": "   0x00000000 0x00: eax=0x00000001 ebx=0x0 ecx=0x0 edx=0x0"}}
guest VmService/GetVm {"name": "vms/prey-0"}
operator VmService/ListVms {"pageSize": 1}
operator VmService/UpdateVm {"vm": {"name": "vms/prey-0", "byteLimit": "2000000"}, "updateMask": "byteLimit"}
guest VmService/RequestPermission {"name": "vms/prey-0", "scope": "PERMISSION_SCOPE_GUEST", "feature": 18}
guest VmService/GetPermission {"name": "vms/prey-0", "scope": "PERMISSION_SCOPE_GUEST"}
guest VmService/GetSupportedCpuid {"name": "vms/prey-0"}
guest VmService/SetCpuid {"name": "vms/prey-0", "xcr0Mask": "393959"}
guest VmService/GetRequiredSize {"name": "vms/prey-0"}
guest TaskService/CreateTask {"parent": "vms/prey-0", "taskId": "t"}
guest TaskService/CloneTask {"task": "vms/prey-0/tasks/t", "newTaskId": "u", "thread": true}
guest TaskService/SetAltstack {"task": "vms/prey-0/tasks/t", "sizeBytes": "65536"}
guest TaskService/ScheduleTask {"task": "vms/prey-0/tasks/t", "cpu": 1}
guest TaskService/UseFeature {"task": "vms/prey-0/tasks/t", "feature": 2, "offset": 0, "data": "AAECAw==", "length": 4}
guest TaskService/KernelFpu {"task": "vms/prey-0/tasks/t"}
guest TaskService/PreemptTask {"task": "vms/prey-0/tasks/t"}
guest TaskService/GetTask {"name": "vms/prey-0/tasks/t"}
guest TaskService/ListTasks {"parent": "vms/prey-0", "pageSize": 2}
?guest TaskService/ExecTask {"task": "vms/prey-0/tasks/u"}
?guest TaskService/ExitTask {"task": "vms/prey-0/tasks/u"}
guest VmService/RequestPermission {"name": "vms/prey-0", "scope": "PERMISSION_SCOPE_GUEST", "feature": 18}
guest VcpuService/CreateVcpu {"parent": "vms/prey-0", "index": 0}
guest VcpuService/CreateVcpu {"parent": "vms/prey-0", "index": 1}
guest VcpuService/CreateVcpu {"parent": "vms/prey-0", "index": 2}
guest VcpuService/CreateVcpu {"parent": "vms/prey-1", "index": 0}
guest VcpuService/CreateVcpu {"parent": "vms/prey-1", "index": 1, "confidential": true}
guest VmService/SetCpuid {"name": "vms/prey-0", "vcpu": "vms/prey-0/vcpus/2", "table": {"entries": [{"function": 13, "eax": 7}]}}
guest VcpuService/GetVcpu {"name": "vms/prey-0/vcpus/0"}
guest VcpuService/ListVcpus {"parent": "vms/prey-0", "pageSize": 1}
guest VcpuService/GetXsave {"name": "vms/prey-0/vcpus/0", "ioctl": "XSAVE_IOCTL_GET_XSAVE2"}
guest VcpuService/SetXsave {"name": "vms/prey-0/vcpus/0", "xsave": "$zeros"}
guest VcpuService/GetXcrs {"name": "vms/prey-0/vcpus/0"}
guest VcpuService/SetXcrs {"name": "vms/prey-0/vcpus/0", "xcrs": [{"xcr": 0, "value": "7"}]}
guest VcpuService/GetMsrs {"name": "vms/prey-0/vcpus/0", "indices": [452, 453, 3488]}
guest VcpuService/SetMsrs {"name": "vms/prey-0/vcpus/0", "entries": [{"index": 452, "value": "0"}, {"index": 1}]}
guest VcpuService/DeleteVcpu {"name": "vms/prey-0/vcpus/2"}
guest GuestSessionService/OpenSession {"clientName": "old", "vcpus": ["vms/prey-0/vcpus/0"]}
guest GuestSessionService/OpenSession {"clientName": "x", "vcpus": ["vms/prey-0/vcpus/1"], "runMode": "RUN_MODE_EXPLICIT"}
guest GuestSessionService/SubmitEvents {"session": "$session", "epoch": "$epoch", "batch": {"events": {"events": [{"vcpu": "vms/prey-0/vcpus/1", "seq": "1", "enter": {}}, {"vcpu": "vms/prey-0/vcpus/1", "seq": "2", "preempt": {"cpu": 1}}, {"vcpu": "vms/prey-0/vcpus/1", "seq": "3", "leave": {}}]}}}
guest GuestSessionService/OpenSession {"clientName": "new", "vcpus": ["vms/prey-0/vcpus/0", "vms/prey-1/vcpus/0"], "requiredCapabilities": ["vcpu-state"], "lease": "600s"}
guest GuestSessionService/KeepAlive {"session": "$session", "epoch": "$epoch"}
operator GuestSessionService/ListSessions {"vm": "vms/prey-0", "pageSize": 1}
guest GuestSessionService/SubmitEvents {"session": "$session", "epoch": "$epoch", "batch": {"events": {"events": [{"vcpu": "vms/prey-0/vcpus/0", "seq": "1", "xsetbv": {"value": "7"}}, {"vcpu": "vms/prey-0/vcpus/0", "seq": "2", "wrmsr": {"msr": 452, "value": "262144"}}, {"vcpu": "vms/prey-0/vcpus/0", "seq": "3", "xsetbv": {"value": "393959"}}, {"vcpu": "vms/prey-0/vcpus/0", "seq": "4", "nm": {"cr0Ts": false}}, {"vcpu": "vms/prey-0/vcpus/0", "seq": "5", "rdmsr": {"msr": 453}}, {"vcpu": "vms/prey-0/vcpus/0", "seq": "6", "wrmsr": {"msr": 452}}]}}}
guest GuestSessionService/SubmitEvents {"session": "$session", "epoch": "$epoch", "wait": "WAIT_MODE_FINAL", "batch": {"outcomesReceivedThrough": [{"vcpu": "vms/prey-0/vcpus/0", "seq": "3"}], "events": {"events": [{"vcpu": "vms/prey-0/vcpus/0", "seq": "7", "registerWrite": {"feature": 2, "offset": 0, "data": "AAECAwQFBgc="}}, {"vcpu": "vms/prey-0/vcpus/0", "seq": "8", "registerRead": {"feature": 2, "offset": 0, "length": 8}}, {"vcpu": "vms/prey-0/vcpus/0", "seq": "9", "tile": {"op": "TILE_OP_LDTILECFG", "memory": "$tilecfg"}}, {"vcpu": "vms/prey-0/vcpus/0", "seq": "10", "tile": {"op": "TILE_OP_TILEZERO", "tile": 1}}, {"vcpu": "vms/prey-0/vcpus/0", "seq": "11", "xgetbv": {"index": 1}}, {"vcpu": "vms/prey-0/vcpus/0", "seq": "12", "writeCr4": {"value": "262144"}}, {"vcpu": "vms/prey-0/vcpus/0", "seq": "13", "xsave": {"insn": "XSAVE_INSN_XSAVEC", "rfbm": "7", "memory": "$zeros"}}, {"vcpu": "vms/prey-0/vcpus/0", "seq": "14", "xsave": {"insn": "XSAVE_INSN_XRSTOR", "rfbm": "7", "memory": "$zeros"}}, {"vcpu": "vms/prey-0/vcpus/0", "seq": "15", "xfdSync": {"xfd": "0"}}, {"vcpu": "vms/prey-0/vcpus/0", "seq": "16", "hlt": {}}]}}}
guest GuestSessionService/SubmitEvents {"session": "$session", "epoch": "$epoch", "batch": {"packed": {"vcpus": ["vms/prey-0/vcpus/0"], "records": "$packed"}}}
guest GuestSessionService/SubmitEvents {"session": "$session", "epoch": "$epoch", "batch": {"events": {"events": [{"vcpu": "vms/prey-1/vcpus/0", "seq": "1", "xsetbv": {"value": "393959"}}]}}}
guest GuestSessionService/WaitOutcome {"session": "$session", "epoch": "$epoch", "vcpu": "vms/prey-0/vcpus/0", "seq": "16"}
guest GuestSessionService/Attach {"hello": {"session": "$session", "epoch": "$epoch", "vcpus": ["vms/prey-0/vcpus/0"]}}
| {"batch": {"events": {"events": [{"vcpu": "vms/prey-0/vcpus/0", "seq": "18", "registerRead": {"feature": 18, "offset": 0, "length": 8192}}]}}}
| {"batch": {"packed": {"vcpus": ["vms/prey-0/vcpus/0"], "records": "$packed"}, "outcomesReceivedThrough": [{"vcpu": "vms/prey-0/vcpus/0", "seq": "2"}]}}
| {"directiveAck": {"id": "1", "vcpu": "vms/prey-0/vcpus/0"}}
controller ExitService/AcquireControl {"controllerName": "old", "lease": "600s", "scope": "vms/prey-0"}
controller ExitService/AcquireControl {"controllerName": "fuzz", "lease": "600s"}
controller ExitService/RenewControl {"control": "$control", "epoch": "$control_epoch"}
guest ExitService/ListExits {"vm": "vms/prey-1", "pageSize": 1, "states": ["EXIT_STATE_OPEN"]}
guest ExitService/WatchExits {"vm": "vms/prey-1", "fromRevision": "1"}
guest ExitService/GetExit {"name": "$exit"}
controller ExitService/ResolveExit {"name": "$exit", "generation": "$generation", "control": "$control", "controlEpoch": "$control_epoch", "decision": {"pause": {}}, "decidedBy": "x"}
?controller ExitService/ResolveExit {"name": "$exit", "generation": "$generation", "control": "$control", "controlEpoch": "$control_epoch", "decision": {"retryAfter": {"delay": "0.01s"}}}
?controller ExitService/ResolveExit {"name": "$exit", "generation": "$generation", "control": "$control", "controlEpoch": "$control_epoch", "decision": {"raiseLimit": {"bytes": "1000", "scope": "LIMIT_SCOPE_VM"}}}
?controller ExitService/ResolveExit {"name": "$exit", "generation": "$generation", "control": "$control", "controlEpoch": "$control_epoch", "decision": {"reclaim": {"victims": ["vms/prey-0/vcpus/0"]}}}
?controller ExitService/ResolveExit {"name": "$exit", "generation": "$generation", "control": "$control", "controlEpoch": "$control_epoch", "decision": {"migrate": {"target": "x"}}}
controller ExitService/ResolveExit {"name": "$exit", "generation": "$generation", "control": "$control", "controlEpoch": "$control_epoch", "decision": {"injectGp": {}}}
controller ExitService/ListDecisions {"vm": "vms/prey-1", "pageSize": 1}
fault FaultService/ArmFault {"fault": {"point": "fpstate.realloc.alloc", "scope": {"vm": "vms/prey-0", "owner": "fuzz"}, "attributes": {"times": "1", "interval": "1", "probabilityPpm": 500000, "seed": "1"}, "action": {"errnoAction": {"errnoValue": 12}}}}
fault FaultService/GetFault {"name": "$fault"}
fault FaultService/ListFaults {"pageSize": 1, "owner": "fuzz"}
fault FaultService/RenewFaults {"owner": "fuzz"}
fault FaultService/DisarmFault {"name": "$fault"}
fault FaultService/WatchFaults {"owner": "fuzz"}
?fault FaultService/Evaluate {"point": "fpstate.realloc.alloc", "scope": {"vm": "vms/prey-0"}, "size": "1"}
?fault FaultService/AdvanceClock {"duration": "1s"}
operator MigrationService/CheckCompat {"requirements": {"profile": "sapphire-rapids", "xfeatures": "7", "layouts": [{"xfeature": 0, "size": 160}, {"xfeature": 1, "offset": 160, "size": 256}, {"xfeature": 2, "offset": 576, "size": 256}], "vcpuCount": 1, "kernelRules": "6.18", "allocationPolicy": "ALLOCATION_POLICY_ON_SWAP", "containerBytesMax": "4096", "formatVersion": 1}}
operator MigrationService/BeginMigration {"name": "vms/prey-0", "target": "unix:/x"}
operator MigrationService/GetMigration {"name": "$migration"}
operator MigrationService/ListMigrations {"parent": "vms/prey-0", "pageSize": 1}
operator MigrationService/ExportVm {"name": "vms/prey-0", "migration": "$migration"}
?operator MigrationService/ImportVm {"start": {"name": "vms/prey-0"}}
| {"chunk": {"offset": "0", "data": "AAEC"}}
?operator MigrationService/StageMigration {"name": "$migration", "ownershipEpoch": "$ownership_epoch"}
?operator MigrationService/CommitMigration {"name": "$migration", "ownershipEpoch": "$ownership_epoch"}
operator MigrationService/AbortMigration {"name": "$migration", "ownershipEpoch": "$ownership_epoch", "reason": "x"}
operator WatchService/Watch {"fromRevision": "1", "filters": [{"kinds": ["RESOURCE_KIND_VM"], "parent": "vms/prey-0"}], "bookmarkInterval": "1s"}
stranger Health/Check {"service": "fpstate.v1.VmService"}
?stranger Health/List {}
stranger Health/Watch {"service": "fpstate.v1.VmService"}
stranger ServerReflection/ServerReflectionInfo {"listServices": "x"}
guest VmService/ResetVm {"name": "vms/prey-0"}
controller ExitService/ReleaseControl {"control": "$control", "epoch": "$control_epoch"}
guest GuestSessionService/CloseSession {"session": "$session", "epoch": "$epoch"}
guest GuestSessionService/OpenSession {"clientName": "last", "vcpus": ["vms/prey-0/vcpus/0"], "lease": "600s"}
controller ExitService/AcquireControl {"controllerName": "fuzz", "lease": "600s"}
"""  # noqa: E501 -- a request is a line


@dataclass(frozen=True, slots=True)
class Stop:
    """One call of the tour, not filled in."""

    role: str
    path: str
    requests: tuple[str, ...]
    may_be_refused: bool

    def messages(self, vocabulary: Vocabulary) -> tuple[bytes, ...]:
        """The requests with what the host has said in their places, serialized."""
        return tuple(self._message(text, vocabulary) for text in self.requests)

    def _message(self, text: str, vocabulary: Vocabulary) -> bytes:
        filled = Template(text).safe_substitute(_CONSTANTS | vocabulary.latest)
        return json_format.Parse(filled, request_class(self.path)()).SerializeToString()


def stops() -> Iterator[Stop]:
    """The tour, in its order."""
    calls: list[list[str]] = []
    for line in _TOUR.strip().splitlines():
        head, _, request = line.partition(" ")
        if head == "|":
            calls[-1].append(request)
        else:
            calls.append([head, *request.split(" ", 1)])
    for head, method, *requests in calls:
        yield Stop(head.lstrip("?"), full_path(method), tuple(requests), head.startswith("?"))


def _base64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


_CONSTANTS: Final = {
    # More than the user format of any processor here has.
    "zeros": _base64(bytes(11_008)),
    # Palette 1, 8 tiles of 16 rows of 64 bytes.
    "tilecfg": _base64(bytes([1]) + bytes(15) + bytes([64, 0]) * 8 + bytes(16) + bytes([16]) * 8 + bytes(8)),
    # Number 17: WRMSR of IA32_XFD with 0.
    "packed": _base64(bytes.fromhex("070000000000000000000000c401000011000000000000000000000000000000")),
}
