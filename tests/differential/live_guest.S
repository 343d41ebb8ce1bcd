# SPDX-License-Identifier: Apache-2.0
#
# Code for live-kvm: an XSETBV in ring 0, and ring-3 routines that fill the registers of a real processor from memory.
#
# Out is an OUT, which is an exit to the VMM: to PORT_DONE, or from the #GP gate to PORT_GP. Ring 3's way there is INT3. The
# routines are in ring 3 because a KVM that emulates ring 0 may not know these encodings.
#
# write_xcr: RDI is the number of the register, RSI the value. The routines: RDI points at the bytes.
#
#   offset  0     32 x 64 bytes: ZMM0..ZMM31; their low halves are YMM, the lowest quarters XMM
#   offset  2048  8 x 8 bytes: K0..K7
#   offset  2112  4 bytes: MXCSR
#   offset  2116  2 bytes: the x87 control word
#   offset  2128  8 x 16 bytes: ST0..ST7, ten bytes each
#
# Built by tools/build_guest.py; live_guest.bin is checked in beside this file.

        .intel_syntax noprefix
        .code64
        .text

        .equ PORT_DONE,         0xe0
        .equ PORT_GP,           0xe1

header: .quad   done, gp, write_xcr, load_x87, load_sse, load_avx, load_avx512

done:   out     PORT_DONE, al
        hlt

gp:     out     PORT_GP, al
        hlt

write_xcr:
        mov     rcx, rdi
        mov     rax, rsi
        mov     rdx, rsi
        shr     rdx, 32
        xsetbv
        jmp     done

load_x87:
        fninit
        fldcw   word ptr [rdi + 2116]
        .irp    n, 7, 6, 5, 4, 3, 2, 1, 0
        fld     tbyte ptr [rdi + 2128 + 16 * \n]
        .endr
        int3

load_sse:
        ldmxcsr dword ptr [rdi + 2112]
        .irp    n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
        movdqu  xmm\n, xmmword ptr [rdi + 64 * \n]
        .endr
        int3

load_avx:
        ldmxcsr dword ptr [rdi + 2112]
        .irp    n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
        vmovdqu ymm\n, ymmword ptr [rdi + 64 * \n]
        .endr
        int3

load_avx512:
        ldmxcsr dword ptr [rdi + 2112]
        .irp    n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
        vmovdqu64 zmm\n, zmmword ptr [rdi + 64 * \n]
        .endr
        .irp    n, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31
        vmovdqu64 zmm\n, zmmword ptr [rdi + 64 * \n]
        .endr
        .irp    n, 0, 1, 2, 3, 4, 5, 6, 7
        kmovq   k\n, qword ptr [rdi + 2048 + 8 * \n]
        .endr
        int3
