"""Temporary: fpstated guest over KVM."""
from __future__ import annotations
import json, sys, time, uuid
import grpc
from fpstate.v1 import vcpu_pb2, vcpu_pb2_grpc, vm_pb2, vm_pb2_grpc
from guest_agent.channel import connect
from guest_agent.kvm import KvmGuest, GuestProgram, GrowthOrder, Done, Inject, Stop
from guest_agent.outcome import Done as ODone, Injected, Gone
from guest_agent.session import open_session
from guest_agent.event import TileOp as EOp

def say(vcpu, text, tone="plain"):
    print(json.dumps({"t": time.monotonic_ns(), "lane": "G", "vcpu": vcpu, "text": text, "tone": tone}), flush=True)

class Handler:
    def __init__(self, port, name): self.p=port; self.n=name
    def _r(self, o):
        if isinstance(o, ODone): return Done(o.value, o.data)
        if isinstance(o, Injected): return Inject(o.vector, o.error_code, o.xfd_err)
        return Stop(str(o.directive))
    def xsetbv(self, index, value):
        say(self.n, f"XSETBV XCR{index}={value:#x}  -> intercept"); return self._r(self.p.xsetbv(value, index=index))
    def wrmsr(self, msr, value):
        say(self.n, f"WRMSR {'XFD' if msr==0x1c4 else 'XFD_ERR'}={value:#x}  -> intercept"); return self._r(self.p.wrmsr(msr, value=value))
    def rdmsr(self, msr):
        r=self.p.rdmsr(msr); say(self.n, f"RDMSR {'XFD' if msr==0x1c4 else 'XFD_ERR'} = {r.value:#x}"); return self._r(r)
    def tile(self, op, tile, memory):
        say(self.n, f"{op.value} tmm{tile}  -> #UD, forwarded"); return self._r(self.p.tile(EOp[op.name], tile=tile, memory=memory))
    def hlt(self):
        say(self.n, "HLT"); return self._r(self.p.hlt())

def run(address, vm, order, permission):
    ch=connect(address)
    vm_pb2_grpc.VmServiceStub(ch).CreateVm(vm_pb2.CreateVmRequest(vm_id=vm), timeout=10)
    if permission:
        vm_pb2_grpc.VmServiceStub(ch).RequestPermission(vm_pb2.RequestPermissionRequest(name=f"vms/{vm}", scope=vm_pb2.PERMISSION_SCOPE_GUEST, feature=18), timeout=10)
    vcpu_pb2_grpc.VcpuServiceStub(ch).CreateVcpu(vcpu_pb2.CreateVcpuRequest(parent=f"vms/{vm}", index=0), timeout=10)
    name=f"vms/{vm}/vcpus/0"
    with open_session(ch, vcpus=[name], client_name="demo") as s:
        g=KvmGuest(Handler(s.vcpu(name), name), GuestProgram(order=GrowthOrder(order)), lambda m: say(name, f"guest says {m.mark.name} {m.value:#x}", "event"))
        rep=g.run()
        say(name, f"guest ended: {rep.outcome.name}", "event")
    return 0 if rep.outcome.name in ("VERIFIED","REFUSED") else 1
