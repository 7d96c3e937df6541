"""Takes from a process what a decoder never needs: files, network, other programs, other processes, privileges.

The kernel refuses the system calls themselves (seccomp), so a decoder that was talked into something by a hostile file
cannot do it, whatever the bug. Reading, memory and threads stay. What is open already can still be read and written.
Linux on x86-64 and AArch64; elsewhere `confine` says what is not in force.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import resource
import signal
import sys
from collections.abc import Iterable

_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _FILTER = 1, 38, 22, 2
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data
_CLONE_THREAD = 0x00010000
_NOBODY = 65534

_X86_64 = {
    "open": 2, "socket": 41, "connect": 42, "accept": 43, "sendto": 44, "sendmsg": 46, "bind": 49, "listen": 50,
    "socketpair": 53, "fork": 57, "vfork": 58, "execve": 59, "kill": 62, "truncate": 76, "rename": 82, "mkdir": 83,
    "rmdir": 84, "creat": 85, "link": 86, "unlink": 87, "symlink": 88, "chmod": 90, "fchmod": 91, "chown": 92,
    "fchown": 93, "lchown": 94, "ptrace": 101, "mknod": 133, "pivot_root": 155, "chroot": 161, "mount": 165,
    "umount2": 166, "init_module": 175, "tkill": 200, "tgkill": 234, "mq_open": 240, "add_key": 248, "request_key": 249,
    "keyctl": 250, "shmget": 29, "shmat": 30, "semget": 64, "msgget": 68, "openat": 257, "mkdirat": 258, "mknodat": 259,
    "fchownat": 260, "unlinkat": 263, "renameat": 264, "linkat": 265, "symlinkat": 266, "fchmodat": 268, "unshare": 272,
    "accept4": 288, "perf_event_open": 298, "open_by_handle_at": 304, "sendmmsg": 307, "setns": 308,
    "process_vm_readv": 310, "process_vm_writev": 311, "finit_module": 313, "renameat2": 316, "memfd_create": 319,
    "bpf": 321, "execveat": 322, "userfaultfd": 323,
}  # fmt: skip
_AARCH64 = {
    "mknodat": 33, "mkdirat": 34, "unlinkat": 35, "symlinkat": 36, "linkat": 37, "renameat": 38, "umount2": 39,
    "mount": 40, "pivot_root": 41, "truncate": 45, "chroot": 51, "fchmod": 52, "fchmodat": 53, "fchownat": 54,
    "fchown": 55, "openat": 56, "unshare": 97, "init_module": 105, "ptrace": 117, "kill": 129, "tkill": 130,
    "tgkill": 131, "mq_open": 180, "msgget": 186, "semget": 190, "shmget": 194, "shmat": 196, "socket": 198,
    "socketpair": 199, "bind": 200, "listen": 201, "accept": 202, "connect": 203, "sendto": 206, "sendmsg": 211,
    "add_key": 217, "request_key": 218, "keyctl": 219, "execve": 221, "perf_event_open": 241, "accept4": 242,
    "open_by_handle_at": 265, "setns": 268, "sendmmsg": 269, "process_vm_readv": 270, "process_vm_writev": 271,
    "finit_module": 273, "renameat2": 276, "memfd_create": 279, "bpf": 280, "execveat": 281, "userfaultfd": 282,
}  # fmt: skip
_BOTH = {
    "pidfd_send_signal": 424, "io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427,
    "open_tree": 428, "move_mount": 429, "fsopen": 430, "pidfd_open": 434, "openat2": 437, "pidfd_getfd": 438,
    "fchmodat2": 452,
}  # fmt: skip
_MACHINES = {  # name -> architecture as the kernel writes it, forbidden calls, clone, first number of another ABI
    "x86_64": (0xC000003E, _X86_64, 56, 0x40000000),
    "aarch64": (0xC00000B7, _AARCH64, 220, None),
}
_CLONE3 = 435


def confine(*, memory: int, cpu_seconds: int, output_bytes: int) -> list[str]:
    """Limits and shuts in this process, for good; returns what could not be put in force.

    `memory` bounds its address space, `output_bytes` the length of any file that it writes to.
    """
    _limit(resource.RLIMIT_AS, memory)
    _limit(resource.RLIMIT_CPU, cpu_seconds)
    _limit(resource.RLIMIT_FSIZE, output_bytes)
    _limit(resource.RLIMIT_CORE, 0)
    # A write beyond the limit is then an error, and no death.
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    if sys.platform != "linux":
        return ["only Linux takes files, network and privileges away"]
    return [*_drop_privileges(), *_forbid_calls()]


def die_with_parent() -> None:
    """Lets the kernel kill this process when the one that started it ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _limit(kind: int, value: int) -> None:
    """Where the machine is stricter already, its limit stays."""
    _, hard = resource.getrlimit(kind)
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    # A second of processor time between the two, in which the first one's signal ends the process.
    resource.setrlimit(kind, (value, value + 1 if kind == resource.RLIMIT_CPU and hard != value else value))


def _drop_privileges() -> list[str]:
    """Root, as containers often run, would be above some of the limits."""
    if os.geteuid() != 0:
        return []
    try:
        os.setgroups([])
        os.setresgid(_NOBODY, _NOBODY, _NOBODY)
        os.setresuid(_NOBODY, _NOBODY, _NOBODY)
    except OSError as problem:
        # Containers without root on the machine map few users; their root is nobody outside.
        return [f"root could not be dropped ({problem.strerror})"]
    return []


class _Step(ctypes.Structure):
    _fields_ = [("code", ctypes.c_ushort), ("yes", ctypes.c_ubyte), ("no", ctypes.c_ubyte), ("k", ctypes.c_uint)]  # noqa: RUF012


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("steps", ctypes.POINTER(_Step))]  # noqa: RUF012


def _forbid_calls() -> list[str]:
    machine = _MACHINES.get(platform.machine())
    if machine is None:
        return [f"no list of system calls is kept for {platform.machine()}: files and network are open to a decoder"]
    steps = _filter(*machine)
    program = _Program(len(steps), (_Step * len(steps))(*steps))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(
        _PR_SET_SECCOMP, _FILTER, ctypes.byref(program), 0, 0
    ):
        return [f"the kernel takes no filter ({os.strerror(ctypes.get_errno())}): files and network are open to it"]
    return []


def _filter(architecture: int, calls: dict[str, int], clone: int, other_abi: int | None) -> list[_Step]:
    """A seccomp program: another architecture kills, what is forbidden fails, new processes fail, threads may be."""
    load, equal, at_least, has_bits, give = 0x20, 0x15, 0x35, 0x45, 0x06
    steps = [
        _Step(load, 0, 0, _ARCHITECTURE),
        _Step(equal, 1, 0, architecture),
        _Step(give, 0, 0, _KILL),
        _Step(load, 0, 0, _NUMBER),
    ]
    if other_abi is not None:
        steps += [_Step(at_least, 0, 1, other_abi), _Step(give, 0, 0, _ERRNO | errno.EPERM)]
    # The C library falls back on clone, whose flags can be looked at.
    steps += [_Step(equal, 0, 1, _CLONE3), _Step(give, 0, 0, _ERRNO | errno.ENOSYS)]
    for number in _numbers(calls):
        steps += [_Step(equal, 0, 1, number), _Step(give, 0, 0, _ERRNO | errno.EPERM)]
    steps += [
        _Step(equal, 0, 3, clone),
        _Step(load, 0, 0, _FIRST_ARGUMENT),
        _Step(has_bits, 1, 0, _CLONE_THREAD),
        _Step(give, 0, 0, _ERRNO | errno.EPERM),
        _Step(give, 0, 0, _ALLOW),
    ]
    return steps


def _numbers(calls: dict[str, int]) -> Iterable[int]:
    return sorted({*calls.values(), *_BOTH.values()})
