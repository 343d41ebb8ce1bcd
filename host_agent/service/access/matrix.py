"""The matrix: every method of every service, and which role has it. The one place where that is said.

`yes` has the call, `own` has it for its own VMs and sessions (``ownership.py``), `-` has it not. A method that is not
here is refused to everybody; docs/security.md shows this table, and a test that every method is in it.
"""

from __future__ import annotations

import enum
from typing import Final

from host_agent.service.access.principal import Role


class Grant(enum.Enum):
    """What a role has of a call."""

    YES = "yes"
    OWN = "own"
    NO = "-"


#: The order of the columns.
ROLES: Final = (Role.GUEST, Role.CONTROLLER, Role.OPERATOR, Role.FAULT)

_TABLE: Final = """
#                                guest controller operator fault
fpstate.v1.HostService
  GetHostInfo                    yes   yes        yes      yes
  UpdateHost                     -     -          yes      -
  DrainHost                      -     -          yes      -
fpstate.v1.VmService
  CreateVm                       own   -          yes      -
  GetVm                          own   yes        yes      yes
  ListVms                        -     yes        yes      yes
  UpdateVm                       -     yes        yes      -
  DeleteVm                       own   -          yes      -
  ResetVm                        own   -          yes      -
  RequestPermission              own   -          yes      -
  GetPermission                  own   yes        yes      yes
  SetCpuid                       own   -          yes      -
  GetSupportedCpuid              own   yes        yes      yes
  GetRequiredSize                own   yes        yes      yes
fpstate.v1.TaskService
  CreateTask                     own   -          yes      -
  CloneTask                      own   -          yes      -
  ExecTask                       own   -          yes      -
  ExitTask                       own   -          yes      -
  ScheduleTask                   own   -          yes      -
  PreemptTask                    own   -          yes      -
  UseFeature                     own   -          yes      -
  SetAltstack                    own   -          yes      -
  KernelFpu                      own   -          yes      -
  GetTask                        own   yes        yes      yes
  ListTasks                      own   yes        yes      yes
fpstate.v1.VcpuService
  CreateVcpu                     own   -          yes      -
  GetVcpu                        own   yes        yes      yes
  ListVcpus                      own   yes        yes      yes
  DeleteVcpu                     own   -          yes      -
  GetXsave                       own   -          yes      -
  SetXsave                       own   -          yes      -
  GetXcrs                        own   -          yes      -
  SetXcrs                        own   -          yes      -
  GetMsrs                        own   -          yes      -
  SetMsrs                        own   -          yes      -
fpstate.v1.GuestSessionService
  OpenSession                    own   -          yes      -
  KeepAlive                      own   -          yes      -
  CloseSession                   own   -          yes      -
  Attach                         own   -          yes      -
  SubmitEvents                   own   -          yes      -
  WaitOutcome                    own   -          yes      -
  ListSessions                   -     -          yes      -
fpstate.v1.ExitService
  AcquireControl                 -     yes        yes      -
  RenewControl                   -     yes        yes      -
  ReleaseControl                 -     yes        yes      -
  WatchExits                     own   yes        yes      yes
  ListExits                      own   yes        yes      yes
  GetExit                        own   yes        yes      yes
  ResolveExit                    -     yes        yes      -
  ListDecisions                  -     yes        yes      -
fpstate.v1.MigrationService
  ExportVm                       -     -          yes      -
  ImportVm                       -     -          yes      -
  CheckCompat                    -     yes        yes      -
  BeginMigration                 -     yes        yes      -
  StageMigration                 -     yes        yes      -
  CommitMigration                -     yes        yes      -
  AbortMigration                 -     yes        yes      -
  GetMigration                   -     yes        yes      yes
  ListMigrations                 -     yes        yes      yes
fpstate.v1.WatchService
  Watch                          own   yes        yes      yes
fpstate.fault.v1.FaultService
  ArmFault                       -     -          yes      yes
  DisarmFault                    -     -          yes      yes
  GetFault                       -     -          yes      yes
  ListFaults                     -     -          yes      yes
  ResetFaults                    -     -          yes      yes
  RenewFaults                    -     -          yes      yes
  WatchFaults                    -     -          yes      yes
  Evaluate                       own   -          yes      yes
  AdvanceClock                   -     -          yes      yes
grpc.health.v1.Health
  Check                          yes   yes        yes      yes
  List                           yes   yes        yes      yes
  Watch                          yes   yes        yes      yes
grpc.reflection.v1alpha.ServerReflection
  ServerReflectionInfo           yes   yes        yes      yes
"""


def _read(table: str) -> dict[str, dict[Role, Grant]]:
    found: dict[str, dict[Role, Grant]] = {}
    service = ""
    for line in table.strip().splitlines():
        words = line.split()
        if line.startswith("#"):
            assert words[1:] == [role.value for role in ROLES], "the columns are as ROLES has them"
        elif len(words) == 1:
            service = words[0]
        else:
            name, *grants = words
            found[f"/{service}/{name}"] = dict(zip(ROLES, map(Grant, grants), strict=True))
    return found


#: Grants by method, as gRPC spells a method, and by role.
MATRIX: Final = _read(_TABLE)
#: What a role has of a method that the matrix does not know.
_NOTHING: Final = dict.fromkeys(ROLES, Grant.NO)


def grant(method: str, role: Role) -> Grant:
    """What ``role`` has of ``method`` (`/package.Service/Method`)."""
    return MATRIX.get(method, _NOTHING)[role]


def matrix_table() -> str:
    """The matrix as docs/security.md shows it."""
    lines = [f"| method | {' | '.join(role.value for role in ROLES)} |", f"|---|{'---|' * len(ROLES)}"]
    service = ""
    for method, grants in MATRIX.items():
        _, found, name = method.split("/")
        if found != service:
            service = found
            lines.append(f"| **{service}** |{' |' * len(ROLES)}")
        lines.append(f"| {name} | {' | '.join(grants[role].value for role in ROLES)} |")
    return "\n".join(lines) + "\n"
