# SPDX-License-Identifier: Apache-2.0
#
# The guest program of the real guest: the founding mail's guest side, in machine code of our own.
#
# Ring 0 writes XCR0 and XFD and takes the exceptions; ring 3 owns the tiles and the vectors. Tile code lives in ring 3
# because a KVM that emulates ring 0 has no VEX encodings there, while ring 3 runs on the processor everywhere.
#
#   start       XSETBV 7; [WRMSR XFD = tile data;] XSETBV with the tiles; down to ring 3
#   user_main   LDTILECFG, TILELOADD x 8 (the first takes #NM when XFD is armed), TILESTORED x 8, compare
#   nm_entry    RDMSR XFD_ERR; WRMSR XFD_ERR = 0; WRMSR XFD = 0; IRETQ: the tile instruction runs again
#   gp_entry    a refused WRMSR or XSETBV goes on at its fix-up: say 'R', live on without tiles
#
# Port protocol (`out imm8, al`, one byte):
#   PORT_MARK        AL is a letter for the report, RBX its value
#   PORT_XSETBV      the next instruction is XSETBV with this ECX and EDX:EAX. KVM executes XSETBV itself and reports
#                    none of it, so the guest announces it; the VMM asks its model before the instruction runs
#   PORT_UD          a #UD from ring 3; RSP points at the exception frame. The VMM forwards a tile instruction and moves
#                    the frame's RIP on, or makes this a true #UD
#   PORT_XSETBV_GP   a #GP whose RIP is an XSETBV; RAX holds the address of the saved RIP. The VMM moves it on when
#                    its model has accepted the write that the processor refused
#
# Built by tools/build_guest.py (GNU as and ld, text at 0x10000, flat binary); guest.bin is checked in beside this file.

        .intel_syntax noprefix
        .code64
        .text

        .equ PORT_MARK,         0xe0
        .equ PORT_XSETBV,       0xe1
        .equ PORT_UD,           0xe2
        .equ PORT_XSETBV_GP,    0xe3

        .equ KERNEL_CS,         0x08
        .equ USER_SS,           0x18 | 3
        .equ USER_CS,           0x20 | 3

        .equ MSR_IA32_XFD,      0x1c4
        .equ MSR_IA32_XFD_ERR,  0x1c5
        .equ XFEATURE_MASK_XTILE_DATA, 1 << 18

        .equ FLAG_XFD_FIRST,    1 << 0          # arm XFD before XCR0 enables the tiles
        .equ FLAG_AVX,          1 << 1          # keep a pattern in YMM0..YMM15 throughout
        .equ FLAG_AVX512,       1 << 2          # keep a pattern in ZMM0..ZMM31 and K1 throughout
        .equ FLAG_SPIN,         1 << 3          # end in an endless ring-3 loop instead of HLT

        .equ KERNEL_STACK,      0x20000         # tops; stacks grow down
        .equ USER_STACK,        0x22000
        .equ LOADED,            0x24000         # 8 tiles x 1024 bytes: what TILELOADD reads
        .equ STORED,            0x26000         # 8 tiles x 1024 bytes: what TILESTORED wrote
        .equ SCRATCH,           0x28000         # one tile
        .equ VECTORS,           0x2a000         # 2048 bytes: pattern of the vector registers
        .equ VECTORS_BACK,      0x2b000         # 2048 bytes: the same, read back
        .equ CONFIG_BACK,       0x2c000         # 64 bytes: what STTILECFG wrote

        .equ TILE_BYTES,        1024
        .equ TILES,             8

# ---- header: the only thing the VMM knows about this image ----------------------------------------------------------

header: .ascii  "FPGUEST1"
        .quad   start, ud_entry, nm_entry, gp_entry, call_entry, fault_stubs, params
        .quad   KERNEL_STACK, STORED, TILES * TILE_BYTES

params:                                         # written by the VMM before the first entry
params_flags:           .quad 0
params_seed:            .quad 0
params_xcr0_first:      .quad 7
params_xcr0_full:       .quad 0
params_rounds:          .quad 1

# Ring 0 says a letter with the value in RBX.
        .macro MARK letter
        mov     al, \letter
        out     PORT_MARK, al
        .endm

# Ring 3 says a letter with the value in RBX. INT3 is its system call: it needs no I/O permission and one DPL-3 gate.
        .macro SAY letter
        mov     al, \letter
        int3
        .endm

# ---- ring 0: enable, arm, go down ------------------------------------------------------------------------------------

start:  mov     rbx, [rip + params_seed]
        MARK    'B'
        mov     r14, [rip + params_flags]
        mov     rbx, [rip + params_xcr0_first]
        call    write_xcr0
        test    eax, eax
        jz      no_xcr0
        test    r14d, FLAG_XFD_FIRST
        jz      1f
        mov     ebx, XFEATURE_MASK_XTILE_DATA
        mov     ecx, MSR_IA32_XFD
        mov     eax, ebx
        xor     edx, edx
        wrmsr
        MARK    'A'
1:      mov     rbx, [rip + params_xcr0_full]
        call    write_xcr0
        test    eax, eax
        jz      no_xcr0
        test    r14d, FLAG_XFD_FIRST
        jnz     2f
        MARK    'G'                             # XFD is 0: this XSETBV is what made the fpstate grow
2:      lea     rsi, [rip + user_main]
        jmp     enter_user

no_xcr0:                                        # refused: neither tiles nor vectors beyond what XCR0 gave before
        and     r14d, ~(FLAG_AVX | FLAG_AVX512)
        lea     rsi, [rip + user_without_tiles]

enter_user:                                     # rsi: where to go on in ring 3
        mov     eax, USER_SS
        push    rax
        mov     eax, USER_STACK
        push    rax
        mov     eax, 2                          # RFLAGS: nothing but the reserved bit, interrupts off
        push    rax
        mov     eax, USER_CS
        push    rax
        push    rsi
        iretq

write_xcr0:                                     # rbx: value. eax = 1 when it took effect, 0 when refused
        mov     rax, rbx
        mov     rdx, rbx
        shr     rdx, 32
        xor     ecx, ecx
        out     PORT_XSETBV, al
xsetbv_insn:
        xsetbv
        MARK    'x'
        mov     eax, 1
        ret
xsetbv_refused:
        MARK    'R'
        xor     eax, eax
        ret

# ---- exceptions ------------------------------------------------------------------------------------------------------

ud_entry:                                       # nothing is pushed: RSP is the frame, the other registers are ring 3's
        out     PORT_UD, al
        iretq

nm_entry:
        push    rax
        push    rbx
        push    rcx
        push    rdx
        mov     ecx, MSR_IA32_XFD_ERR
        rdmsr
        mov     ebx, edx
        shl     rbx, 32
        or      rbx, rax
        MARK    'N'
        test    rbx, rbx
        jz      nm_fault                        # CR0.TS, not XFD: nothing in this program sets it
        xor     eax, eax
        xor     edx, edx
        mov     ecx, MSR_IA32_XFD_ERR           # cleared first: the next #NM must find its own cause there
        wrmsr
        mov     ecx, MSR_IA32_XFD
nm_wrmsr_xfd:
        wrmsr                                   # the write of the founding mail: it may grow the fpstate, or be refused
        xor     ebx, ebx
        MARK    'G'
        jmp     nm_return
nm_refused:
        mov     rbx, [rsp + 32]                 # the tile instruction that will not be retried
        MARK    'R'
        lea     rax, [rip + user_release]
        mov     [rsp + 32], rax
nm_return:
        pop     rdx
        pop     rcx
        pop     rbx
        pop     rax
        iretq
nm_fault:
        pop     rdx
        pop     rcx
        pop     rbx
        pop     rax
        jmp     fault_stubs + 8 * 7

gp_entry:                                       # [rsp] error code, [rsp + 8] saved RIP
        push    rax
        push    rbx
        lea     rax, [rsp + 24]
        call    is_xsetbv
        jne     gp_fixup
        out     PORT_XSETBV_GP, al
        call    is_xsetbv                       # still there: the model refuses it too
        jne     gp_return
gp_fixup:
        lea     rbx, [rip + fixups]
1:      mov     rax, [rbx]
        test    rax, rax
        jz      gp_fault
        cmp     rax, [rsp + 24]
        je      2f
        add     rbx, 16
        jmp     1b
2:      mov     rax, [rbx + 8]
        mov     [rsp + 24], rax
gp_return:
        pop     rbx
        pop     rax
        add     rsp, 8
        iretq
gp_fault:
        pop     rbx
        pop     rax
        jmp     fault_stubs + 8 * 13

is_xsetbv:                                      # rax: address of a saved RIP. ZF when an XSETBV stands there
        mov     rbx, [rax]
        mov     ebx, [rbx]
        and     ebx, 0xffffff
        cmp     ebx, 0xd1010f
        ret

call_entry:                                     # INT3 from ring 3. al: letter to say, 0 to stop
        test    al, al
        jz      halt
        out     PORT_MARK, al
        iretq

halt:   hlt
        jmp     halt

# One stub of eight bytes per vector, so that the VMM finds stub N at fault_stubs + 8 N.
fault_stubs:
        .set    vector, 0
        .rept   32
        .org    fault_stubs + 8 * vector, 0xcc
        .byte   0x6a, vector                    # push imm8
        .byte   0xe9                            # jmp rel32, spelled out: its size must not depend on the assembler
        .if     (vector == 8) || (vector >= 10 && vector <= 14) || (vector == 17) || (vector == 21)
        .long   fault_with_code - (. + 4)
        .else
        .long   fault - (. + 4)
        .endif
        .set    vector, vector + 1
        .endr

fault_with_code:                                # [rsp] vector, [rsp + 8] error code, [rsp + 16] RIP
        pop     rbx
        add     rsp, 8
        jmp     1f
fault:  pop     rbx
1:      MARK    'F'
        pop     rbx
        MARK    '@'
        jmp     halt

        .balign 8, 0xcc
fixups: .quad   xsetbv_insn, xsetbv_refused     # instructions that may take #GP, and where to go on then
        .quad   nm_wrmsr_xfd, nm_refused
        .quad   0

# ---- ring 3 ----------------------------------------------------------------------------------------------------------

user_main:                                      # r14: flags; r15: random state; r13: rounds left
        mov     r15, [rip + params_seed]
        mov     r13, [rip + params_rounds]
        call    load_vectors
        ldtilecfg [rip + tile_config]

round:  mov     edi, LOADED
        mov     ecx, TILES * TILE_BYTES / 8
        call    fill
        mov     esi, LOADED
        mov     ecx, 64                         # stride
        .irp    n, 0, 1, 2, 3, 4, 5, 6, 7
        tileloadd tmm\n, [rsi + rcx*1 + \n * TILE_BYTES]
        .endr
        mov     edi, STORED
        .irp    n, 0, 1, 2, 3, 4, 5, 6, 7
        tilestored [rdi + rcx*1 + \n * TILE_BYTES], tmm\n
        .endr
        mov     ecx, TILES * TILE_BYTES
        call    compare
        jne     mismatch
        dec     r13
        jnz     round

        mov     r8d, CONFIG_BACK                # the configuration reads back as it was loaded
        sttilecfg [r8]
        lea     rsi, [rip + tile_config]
        mov     edi, CONFIG_BACK
        mov     ecx, 64
        call    compare
        jne     mismatch

        mov     edi, SCRATCH                    # a zeroed tile stores zeros over old bytes
        mov     ecx, TILE_BYTES / 8
        call    fill
        tilezero tmm5
        mov     r9d, 32
        mov     edi, SCRATCH
        tilestored [rdi + r9*2], tmm5
        mov     ecx, TILE_BYTES / 8
        xor     eax, eax
        repe scasq
        jne     mismatch

        tilerelease
        call    check_vectors
        jne     mismatch
        mov     ebx, TILES * TILE_BYTES
        SAY     'V'
        jmp     leave

mismatch:
        mov     rbx, rdi                        # just past the first byte or word that differs
        SAY     'X'
        jmp     leave

user_release:                                   # the XFD write was refused: tiles stay disabled, the rest goes on
        tilerelease
user_without_tiles:
        call    check_vectors
        jne     mismatch
        xor     ebx, ebx
        SAY     'W'

leave:  test    r14d, FLAG_SPIN
        jz      2f
        SAY     'S'
1:      pause
        jmp     1b
2:      xor     eax, eax
        int3

fill:                                           # rcx words at rdi from the generator in r15
        movabs  rax, 6364136223846793005
        movabs  rdx, 1442695040888963407
1:      imul    r15, rax
        add     r15, rdx
        mov     [rdi], r15
        add     rdi, 8
        dec     rcx
        jnz     1b
        ret

compare:                                        # rcx bytes at rsi and rdi. ZF when equal
        repe cmpsb
        ret

load_vectors:
        mov     edi, VECTORS
        mov     ecx, 2048 / 8
        call    fill
        mov     edi, VECTORS
        test    r14d, FLAG_AVX512
        jnz     1f
        test    r14d, FLAG_AVX
        jz      2f
        .irp    n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
        vmovdqu ymm\n, [rdi + \n * 32]
        .endr
        ret
1:      .irp    n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31
        vmovdqu64 zmm\n, [rdi + \n * 64]
        .endr
        mov     eax, r15d
        kmovw   k1, eax
2:      ret

check_vectors:                                  # ZF when the vector registers still hold what load_vectors put there
        mov     edi, VECTORS_BACK
        test    r14d, FLAG_AVX512
        jnz     1f
        test    r14d, FLAG_AVX
        jz      3f
        .irp    n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
        vmovdqu [rdi + \n * 32], ymm\n
        .endr
        mov     ecx, 16 * 32
        jmp     2f
1:      .irp    n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31
        vmovdqu64 [rdi + \n * 64], zmm\n
        .endr
        kmovw   ecx, k1
        mov     esi, VECTORS                    # the mask was the low half of the generator after the last word
        movzx   edx, word ptr [rsi + 2048 - 8]
        cmp     ecx, edx
        jne     4f
        mov     ecx, 32 * 64
2:      mov     esi, VECTORS
        mov     r8d, ecx
        call    compare
        jne     4f
        mov     ebx, r8d
        SAY     'v'                             # no arithmetic follows: ZF is from here on
3:      xor     eax, eax
4:      ret

        .balign 64, 0xcc
tile_config:                                    # palette 1, eight tiles of 16 rows of 64 bytes
        .byte   1, 0
        .fill   14, 1, 0
        .rept   8
        .word   64
        .endr
        .fill   16, 1, 0
        .fill   8, 1, 16
        .fill   8, 1, 0
