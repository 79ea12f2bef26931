"""Runs in the child process: gives up all rights, then runs one program. Only the standard library, and no package.

    python -I -S -B _confined.py < {"program", "inputs", "memory", "cpu", "result", "threads", "parent"}

What the program prints goes to fd 1; the one line about how it ended goes to fd 2. In order: the kernel kills this
process when its parent dies; limits of the process; no capabilities; Landlock, which leaves the standard library
and the system libraries that it links to be read, and nothing else of the file system, so no installed package; a
seccomp filter, which lets only the system calls pass that computing needs.
"""

import ast
import ctypes
import importlib.util
import json
import os
import platform
import resource
import signal
import struct
import sys
import sysconfig
import traceback

LIBC = ctypes.CDLL(None, use_errno=True)
PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP = 1, 38, 22
LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_RESTRICT = 444, 445, 446
READ_FILE, READ_DIR = 1 << 2, 1 << 3
PACKAGES = ("site-packages", "dist-packages")  # what is installed, in the folder of the standard library
# How many rights to files each version of Landlock knows; later ones know 16.
FS_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15}
AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

# System calls that pass, by (x86_64, aarch64); None where the architecture has none. All of them work on memory,
# on clocks, on what is already open, or on this process alone; stat is among them, since imports need it.
ALLOWED: dict[str, tuple[int | None, int | None]] = {
    "read": (0, 63), "write": (1, 64), "close": (3, 57), "fstat": (5, 80), "lseek": (8, 62), "mmap": (9, 222),
    "mprotect": (10, 226), "munmap": (11, 215), "mremap": (25, 216), "brk": (12, 214), "madvise": (28, 233),
    "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139),
    "rt_sigpending": (127, 136), "rt_sigtimedwait": (128, 137), "rt_sigsuspend": (130, 133),
    "sigaltstack": (131, 132), "pread64": (17, 67), "readv": (19, 65), "writev": (20, 66), "dup": (32, 23),
    "dup2": (33, None), "dup3": (292, 24), "pipe": (22, None), "pipe2": (293, 59), "eventfd2": (290, 19),
    "poll": (7, None), "ppoll": (271, 73), "select": (23, None), "pselect6": (270, 72),
    "epoll_create": (213, None), "epoll_create1": (291, 20), "epoll_ctl": (233, 21),
    "epoll_wait": (232, None), "epoll_pwait": (281, 22), "recvfrom": (45, 207), "sendto": (44, 206),
    "shutdown": (48, 210), "getsockname": (51, 204), "getpeername": (52, 205), "getsockopt": (55, 209),
    "sched_yield": (24, 124), "nanosleep": (35, 101), "clock_nanosleep": (230, 115),
    "clock_gettime": (228, 113), "clock_getres": (229, 114), "gettimeofday": (96, 169), "time": (201, None),
    "times": (100, 153), "alarm": (37, None), "getitimer": (36, 102), "setitimer": (38, 103),
    "getpid": (39, 172), "getppid": (110, 173), "gettid": (186, 178), "getuid": (102, 174),
    "geteuid": (107, 175), "getresuid": (118, 148), "getgid": (104, 176), "getegid": (108, 177),
    "getresgid": (120, 150), "getgroups": (115, 158), "uname": (63, 160), "sysinfo": (99, 179),
    "getrlimit": (97, 163), "getrusage": (98, 165), "getcwd": (79, 17), "getcpu": (309, 168),
    "sched_getaffinity": (204, 123), "arch_prctl": (158, None), "futex": (202, 98),
    "set_tid_address": (218, 96), "set_robust_list": (273, 99), "rseq": (334, 293), "membarrier": (324, 283),
    "restart_syscall": (219, 128), "getrandom": (318, 278), "exit": (60, 93), "exit_group": (231, 94),
    "stat": (4, None), "lstat": (6, None), "newfstatat": (262, 79), "statx": (332, 291), "access": (21, None),
    "faccessat": (269, 48), "faccessat2": (439, 439), "getdents64": (217, 61),
}  # fmt: skip
# Those that pass with these values of an argument only: {argument: values}.
CHECKED: dict[tuple[int, int], dict[int, tuple[int, ...]]] = {
    # fcntl: F_DUPFD, F_[GS]ETFD, F_[GS]ETFL, F_DUPFD_CLOEXEC; F_SETOWN could send signals to others
    (72, 25): {1: (0, 1, 2, 3, 4, 1030)},
    (16, 29): {1: (0x5401, 0x5421, 0x5450, 0x5451)},  # ioctl: TCGETS (isatty), FIONBIO, FIONCLEX, FIOCLEX
    # socketpair: AF_UNIX streams, for asyncio's loop; a datagram socket could send to an address
    (53, 199): {0: (1,), 1: (1, 0x801, 0x80001, 0x80801)},
    (302, 261): {0: (0,)},  # prlimit64: of this process
}
OPEN, OPENAT, CLONE = (2, None), (257, 56), (56, 220)
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
CLONE_THREAD = 0x10000
FIRST_NEW = 424  # later calls get ENOSYS, for which libc has a fallback (clone3's flags cannot be looked at)
EPERM, ENOSYS = 1, 38

Instruction = tuple[int, int, int, int]


def need(result: int, what: str) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), what)
    return result


def limit(memory: int, cpu: int) -> None:
    for name, soft, hard in (
        ("AS", memory, memory), ("CPU", cpu, cpu + 1), ("FSIZE", 0, 0), ("CORE", 0, 0), ("NOFILE", 64, 64),
        ("MSGQUEUE", 0, 0), ("MEMLOCK", 0, 0),
    ):  # fmt: skip
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (soft, hard))


def drop_capabilities() -> None:
    header = struct.pack("Ii", 0x20080522, 0)
    need(LIBC.capset(header, struct.pack("6I", *[0] * 6)), "capset")


def readable() -> set[str]:
    """The standard library, time zones, and the folder of libc, where extension modules find what they link."""
    with open("/proc/self/maps") as maps:
        found = {
            os.path.dirname(line.split(maxsplit=5)[-1])
            for line in maps
            if "/libc.so." in line or "/libc-" in line
        }
    found.add("/usr/share/zoneinfo")
    # A rule holds for all that is in a folder, so the library's own folder has none: its parts have.
    for library in {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")}:
        with os.scandir(library) as parts:
            found |= {each.path for each in parts if each.name not in PACKAGES and not each.is_symlink()}
    return found


def confine_files() -> None:
    version = need(LIBC.syscall(LANDLOCK_CREATE, None, 0, 1), "Landlock is not there")
    every = (1 << FS_RIGHTS.get(version, 16)) - 1
    ruleset = struct.pack("Q", every)
    handle = need(LIBC.syscall(LANDLOCK_CREATE, ruleset, len(ruleset), 0), "landlock_create_ruleset")
    for path in filter(os.path.exists, readable()):
        opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
        rights = READ_FILE | READ_DIR if os.path.isdir(path) else READ_FILE
        rule = struct.pack("=Qi", rights, opened)
        need(LIBC.syscall(LANDLOCK_ADD, handle, 1, rule, 0), "landlock_add_rule")
        os.close(opened)
    # Has the import system list the library's folder, which it remembers, while that can be listed.
    importlib.util.find_spec("no_such_module")
    need(LIBC.syscall(LANDLOCK_RESTRICT, handle, 0), "landlock_restrict_self")
    os.close(handle)


def filter_calls(threads: bool) -> None:
    machine = platform.machine()
    which = {"x86_64": 0, "aarch64": 1}[machine]
    load, equal, at_least, any_bit = 0x20, 0x15, 0x35, 0x45
    kill, allow = (6, 0, 0, 0x80000000), (6, 0, 0, 0x7FFF0000)
    deny, unknown = (6, 0, 0, 0x00050000 | EPERM), (6, 0, 0, 0x00050000 | ENOSYS)
    code: list[Instruction] = [
        (load, 0, 0, 4), (equal, 1, 0, AUDIT_ARCH[machine]), kill,
        (load, 0, 0, 0),  # the number of the call
    ]  # fmt: skip

    def when(numbers: tuple[int | None, int | None], *body: Instruction) -> None:
        if (number := numbers[which]) is not None:
            code.extend([(equal, 0, len(body), number), *body])

    def argument(index: int) -> Instruction:
        return (load, 0, 0, 16 + 8 * index)  # its low half; none that is looked at has more

    if machine == "x86_64":
        code += [(at_least, 0, 1, 0x40000000), kill]  # x32
    for numbers in ALLOWED.values():
        when(numbers, allow)
    for numbers, rules in CHECKED.items():
        body: list[Instruction] = []
        for index, values in rules.items():
            jumps = [(equal, len(values) - i, 0, value) for i, value in enumerate(values)]
            body += [argument(index), *jumps, deny]
        when(numbers, *body, allow)
    when(OPEN, argument(1), (any_bit, 0, 1, WRITING), deny, allow)
    when(OPENAT, argument(2), (any_bit, 0, 1, WRITING), deny, allow)
    if threads:
        when(CLONE, argument(0), (any_bit, 0, 1, CLONE_THREAD), allow, deny)
    code += [(at_least, 0, 1, FIRST_NEW), unknown, deny]
    packed = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *each) for each in code))
    program = struct.pack("HxxxxxxP", len(code), ctypes.addressof(packed))
    need(LIBC.prctl(PR_SET_SECCOMP, 2, program, 0, 0), "seccomp")


def said(error: BaseException) -> str:
    """The error in words, which are the program's own: computing them may fail."""
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == "<program>"]
    try:
        words = f"{type(error).__name__}: {error}"[:2000]
    except BaseException:
        words = type(error).__name__
    return words + (f" (line {lines[-1]})" if lines else "")


def run(program: str, names: dict[str, object], most: int) -> dict[str, object]:
    try:
        tree = ast.parse(program, "<program>")
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        body = compile(tree, "<program>", "exec")
        end = compile(ast.Expression(last.value), "<program>", "eval") if isinstance(last, ast.Expr) else None
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return {"ended": "syntax", "error": said(error)}
    value = None
    try:
        exec(body, names)  # noqa: S102 - what this process is for
        if end is not None:
            value = eval(end, names)  # noqa: S307
    except MemoryError as error:
        return {"ended": "memory", "error": said(error)}
    except PermissionError as error:
        return {"ended": "refused", "error": said(error)}
    except SystemExit as error:
        if error.code not in (None, 0):
            return {"ended": "exception", "error": said(error)}
    except BaseException as error:
        return {"ended": "exception", "error": said(error)}
    try:
        text = json.dumps(value, allow_nan=False)
    except BaseException as error:  # its methods may be the program's own
        return {"ended": "result", "error": f"Its value is no JSON: {said(error)}."}
    if len(text) > most:
        return {"ended": "result", "error": f"Its value has more than {most} bytes as JSON."}
    return {"ended": "done", "value": json.loads(text)}


def main() -> None:
    asked = json.loads(sys.stdin.buffer.read())
    report = os.dup(2)
    os.dup2(1, 2)
    try:
        need(LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "prctl")
        if os.getppid() != asked["parent"]:  # it died before the kernel was asked
            os._exit(1)
        limit(asked["memory"], asked["cpu"])
        need(LIBC.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl")
        drop_capabilities()
        confine_files()
        filter_calls(asked["threads"])
    except OSError as error:
        os.write(report, f"{error}\n".encode())
        os._exit(3)
    os.write(report, b"confined\n")
    found = run(asked["program"], {"__name__": "__main__", **asked["inputs"]}, asked["result"])
    try:
        sys.stdout.flush()
    except BaseException as error:  # closed, or replaced by the program
        found = {"ended": "exception", "error": said(error)}
    with os.fdopen(report, "wb") as out:
        out.write(json.dumps(found).encode())
    os._exit(0)  # not waiting for threads of the program


if __name__ == "__main__":
    main()
