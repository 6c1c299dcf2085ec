"""The few system calls that decoding needs, and a kernel filter (seccomp) that refuses all others for good.

A process under the filter reads what is open, sends on a socket that is open, manages its memory and ends. It opens,
writes, connects, starts, traces and signals nothing. A refused call answers EPERM, so that a library which asks for
something harmless goes on without it. No privilege is needed. See docs/decisions/decoding-in-forked-children.md.
"""

import ctypes
import os
import platform
import struct
import sys
from dataclasses import dataclass
from typing import Literal

from model.errors import Told

Confinement = Literal["filtered", "limits-only"]
"""How decoders are held: by the filter and resource limits, or, where the kernel has no filter, by limits alone."""


class FilterUnavailable(Told):
    """The kernel, the platform or its architecture has no filter that we know how to set; `reason` says which."""

    says = "no system call filter: {reason}"
    reason: str


@dataclass(frozen=True)
class _Architecture:
    """Numbers from the kernel's <linux/audit.h> and <asm/unistd.h>."""

    audit: int
    allowed: dict[str, int]


# fmt: off
_ARCHITECTURES = {
    "x86_64": _Architecture(0xC000003E, {
        "read": 0, "close": 3, "lseek": 8, "mmap": 9, "mprotect": 10, "munmap": 11, "brk": 12, "rt_sigprocmask": 14,
        "rt_sigreturn": 15, "mremap": 25, "madvise": 28, "sendto": 44, "exit": 60, "futex": 202,
        "restart_syscall": 219, "clock_gettime": 228, "exit_group": 231, "getrandom": 318,
    }),
    "aarch64": _Architecture(0xC00000B7, {
        "close": 57, "lseek": 62, "read": 63, "exit": 93, "exit_group": 94, "futex": 98, "clock_gettime": 113,
        "restart_syscall": 128, "rt_sigprocmask": 135, "rt_sigreturn": 139, "sendto": 206, "brk": 214, "munmap": 215,
        "mremap": 216, "mmap": 222, "mprotect": 226, "madvise": 233, "getrandom": 278,
    }),
}
# fmt: on


def refuse_all_other_calls() -> None:
    """From here on this process makes the allowed calls only; it cannot be undone.

    The process must have `PR_SET_NO_NEW_PRIVS` set, and should have opened all that it needs.

    Raises:
        FilterUnavailable: nothing was changed.
    """
    architecture = _ARCHITECTURES.get(platform.machine()) if sys.platform == "linux" else None
    if architecture is None:
        raise FilterUnavailable(f"{sys.platform} on {platform.machine()} is not known")
    program = _program(architecture)
    instructions = ctypes.create_string_buffer(program, len(program))
    # struct sock_fprog { unsigned short len; struct sock_filter *filter; }
    header = ctypes.create_string_buffer(struct.pack("HP", len(program) // 8, ctypes.addressof(instructions)))
    zero = ctypes.c_ulong(0)
    mode = ctypes.c_ulong(_SECCOMP_MODE_FILTER)
    if _libc.prctl(_PR_SET_SECCOMP, mode, ctypes.c_void_p(ctypes.addressof(header)), zero, zero) != 0:
        raise FilterUnavailable(os.strerror(ctypes.get_errno()))


def _program(architecture: _Architecture) -> bytes:
    """The filter in the kernel's BPF: an allow-list, for calls of this architecture's own interface alone."""
    numbers = sorted(architecture.allowed.values())
    refuse, allow = 3 + len(numbers), 4 + len(numbers)
    steps = [
        (_LOAD, 0, 0, _OFFSET_OF_ARCHITECTURE),
        (_JUMP_IF_EQUAL, 0, refuse - 2, architecture.audit),
        (_LOAD, 0, 0, _OFFSET_OF_NUMBER),
        *((_JUMP_IF_EQUAL, allow - at - 1, 0, number) for at, number in enumerate(numbers, start=3)),
        (_RETURN, 0, 0, _ANSWER_EPERM),
        (_RETURN, 0, 0, _ALLOW),
    ]
    return b"".join(struct.pack("HBBI", *step) for step in steps)


# From <linux/bpf_common.h>, <linux/seccomp.h>, <linux/prctl.h>.
_LOAD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
_OFFSET_OF_NUMBER, _OFFSET_OF_ARCHITECTURE = 0, 4
_ALLOW, _ANSWER_EPERM = 0x7FFF0000, 0x00050001
_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 22, 2
_libc = ctypes.CDLL(None, use_errno=True)
