"""Scenarios: short text files that say what a host does, with its full output. They are read before they are run.

A file is a list of blocks, apart by an empty line:

    # One or more lines that say what the block shows.
    guest wrmsr XFD=0
    ----
    G  WRMSR XFD=0
    H    realloc request: XTILE_DATA, XFD to be 0   leave the loop, swap out
    H  fpstate 2560 -> 10752 B                      commit XCR0=0x602e7 XFD=0, enter again
    G    done

Above ``----`` stand commands, one a line; below it what they print, in lanes as in the founding mail: ``H`` is the
host, ``G`` the guest, ``U`` userspace, which is the VMM and the controller. Every command drives a real HostMachine,
whose invariants are all checked after every step; at the end of each file the log of its commands is replayed on a
fresh machine, which must reach the identical digest.

``pytest tests/test_scenarios.py --rewrite`` writes what was printed into the files. Commit such a change only if you
can say why each line of it is right. A file in a folder retells a part of a suite somebody else wrote: docs/suites.md.

    create-vm NAME [profile=] [without=] [rules=] [limit=] [policy=] [protected]
                                                            delete-vm NAME [force]     reset-vm NAME
    permit guest|host FEATURE [vm=]                         supported-cpuid [vm=]
    cpuid MASK|empty|supported|long [without=] [of=HOST] [vm=] [vcpu=]
    create-vcpu N [vm=] [task=] [confidential]              delete-vcpu VCPU
    task NAME create | schedule CPU | preempt | load FEATURE PATTERN | read FEATURE
              | kernel-fpu | clone CHILD thread|process | exec | exit
              | arch-prctl OP [ARG] | altstack BYTES|off | signal [altstack] | sigreturn
              | reads-frame FEATURE | edits-frame FIELD=VALUE | edits-frame FEATURE PATTERN
              | ptrace get [LENGTH|FEATURE] | ptrace set [len=] [FIELD=VALUE...] [FEATURE PATTERN]
    take-turns FEATURE TASK... [rounds=] [cpu=]             each finds what it loaded in the round before
    fail-allocation [point=] [nth=] [times=] [vm=] [vcpu=]  fail-allocation off
    limit vm|host BYTES|none                                advance DURATION
    preempt-at intercept|write|realloc [kernel-fpu]         trace on|off
    session [explicit] [vcpus=] [lease=] [client=]          close-session [N]
    guest [VCPU] EVENT [seq=] [session=]                    events: guest_commands.EVENTS, and cpuid LEAF [SUB]
    guest [VCPU] xsave|xsaveopt|xsavec|xrstor MEMORY [rfbm=] [xstate_bv=] [xcomp_bv=] [misaligned=]
    controller NAME [scope=] [lease=] [label=]              keep-alive [N]
    decide DECISION [exit=] [generation=] [as=] [reason=]   decisions: controller_commands.DECISIONS
    get-xsave [VCPU] [as=BUFFER] [old]                      set-xsave [VCPU] [BUFFER]
    edit BUFFER FIELD=VALUE... [as=]                        fields: xsave_buffer.edited
    get-xcrs [VCPU]    set-xcrs [VCPU] VALUE [xcr=] [times=] [flags=]
    get-msrs [VCPU] [MSR...]                                set-msrs [VCPU] MSR=VALUE...
    msr-index-list [vm=]
    required-size [VM]                                      save-restore [VCPU] [vmm=]
    show vcpu | fpstate | registers | cpu | exit | audit | directives | ledger
              | permissions | faults | digest [OF]
    on HOST [profile=] [limit=]                             what follows happens there
    migrate check VM on=HOST | begin VM to=HOST | adopt VM | export VM [as=] [snapshot] | stage VM
            | import [IMAGE] [of=VM] [snapshot] [name=] [damaged=]
            | commit VM [without-proof] [force] | abort VM [without-proof] [force]
    each 1-4,8 COMMAND                                      COMMAND for each number, which stands for {} in it
    replay

A VCPU is ``0`` in the first VM or ``b/0`` in another, a task ``main`` or ``b/main``. A mask is numbers (``0x2e7``,
``1<<18``) and feature names joined by ``|``. A PATTERN is a name of your choice: the same name is the same bytes, and
bytes that are read back are shown by the name they were loaded under.
"""
