"""Runs in the child process: gives up all rights, then runs one program. Only the standard library, and no package.

    python -I -S -E -B _confined.py < {"program": ..., "inputs": ..., "memory": ..., "cpu": ..., "result": ...}

What the program prints goes to fd 1; the one line about how it ended goes to fd 2. In order: the kernel kills this
process when its parent dies; limits of the process; no capabilities; Landlock, which leaves the Python
installation to be read and nothing else of the file system; a seccomp filter, which refuses system calls that make
processes, sockets or shared memory, signal or trace others, or change what files are (Landlock does not cover
modes, owners and times).
"""

import ctypes
import json
import os
import platform
import resource
import signal
import struct
import sys
import sysconfig

LIBC = ctypes.CDLL(None, use_errno=True)
PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP = 1, 38, 22
LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_RESTRICT = 444, 445, 446
READ_FILE, READ_DIR, EXECUTE = 1 << 2, 1 << 3, 1 << 0
# Bits of the rights to the file system that each version of Landlock knows.
FS_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15}
CLONE_THREAD = 0x10000
EPERM, ENOSYS = 1, 38

# name: (x86_64, aarch64); None where the architecture has none.
REFUSED = {
    "fork": (57, None), "vfork": (58, None), "execve": (59, 221), "execveat": (322, 281),
    "socket": (41, 198), "socketpair": (53, 199), "bind": (49, 200), "connect": (42, 203), "listen": (50, 201),
    "kill": (62, 129), "tkill": (200, 130), "tgkill": (234, 131), "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240), "pidfd_send_signal": (424, 424), "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438), "ptrace": (101, 117), "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271), "process_madvise": (440, 440), "kcmp": (312, 272), "prctl": (157, 167),
    "setsid": (112, 157), "setpgid": (109, 154), "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40),
    "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51), "move_mount": (429, 429),
    "open_tree": (428, 428), "fsopen": (430, 430), "fsconfig": (431, 431), "fsmount": (432, 432),
    "mount_setattr": (442, 442), "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425), "keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218),
    "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106), "kexec_load": (246, 104),
    "kexec_file_load": (320, 294), "reboot": (169, 142), "swapon": (167, 224), "swapoff": (168, 225),
    "acct": (163, 89), "quotactl": (179, 60), "settimeofday": (164, 170), "clock_settime": (227, 112),
    "adjtimex": (159, 171), "clock_adjtime": (305, 266), "sethostname": (170, 161), "setdomainname": (171, 162),
    "syslog": (103, 116), "iopl": (172, None), "ioperm": (173, None), "personality": (135, 92),
    "shmget": (29, 194), "shmat": (30, 196), "msgget": (68, 186), "semget": (64, 190), "mq_open": (240, 180),
    "open_by_handle_at": (304, 265), "name_to_handle_at": (303, 264), "fanotify_init": (300, 262),
    "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452),
    "chown": (92, None), "fchown": (93, 55), "lchown": (94, None), "fchownat": (260, 54), "utime": (132, None),
    "utimes": (235, None), "utimensat": (280, 88), "futimesat": (261, None), "setxattr": (188, 5),
    "lsetxattr": (189, 6), "fsetxattr": (190, 7), "removexattr": (197, 14), "lremovexattr": (198, 15),
    "fremovexattr": (199, 16), "setxattrat": (463, 463), "removexattrat": (466, 466), "setpriority": (141, 140),
    "ioprio_set": (251, 30), "sched_setscheduler": (144, 119), "sched_setparam": (142, 118),
    "sched_setattr": (314, 274), "sched_setaffinity": (203, 122), "migrate_pages": (256, 238),
    "move_pages": (279, 239), "set_mempolicy_home_node": (450, 450), "setuid": (105, 146), "setgid": (106, 144),
    "setresuid": (117, 147), "setresgid": (119, 149), "setgroups": (116, 159), "capset": (126, 91),
    "memfd_secret": (447, 447), "inotify_init1": (294, 26), "vhangup": (153, 58), "lookup_dcookie": (212, 18),
}  # fmt: skip
CLONE, CLONE3, PRLIMIT = (56, 220), (435, 435), (302, 261)
AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}


def need(result: int, what: str) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), what)
    return result


def limit(memory: int, cpu: int) -> None:
    for name, value in (
        ("RLIMIT_AS", memory), ("RLIMIT_CPU", cpu), ("RLIMIT_FSIZE", 0), ("RLIMIT_CORE", 0), ("RLIMIT_NOFILE", 64),
        ("RLIMIT_MSGQUEUE", 0), ("RLIMIT_MEMLOCK", 0),
    ):  # fmt: skip
        resource.setrlimit(getattr(resource, name, 0), (value, value)) if hasattr(resource, name) else None


def drop_capabilities() -> None:
    header = struct.pack("Ii", 0x20080522, 0)
    need(LIBC.capset(header, struct.pack("6I", *[0] * 6)), "capset")


def confine_files() -> None:
    version = need(LIBC.syscall(LANDLOCK_CREATE, None, 0, 1), "Landlock is not there")
    every = (1 << FS_RIGHTS.get(version, 16)) - 1
    ruleset = struct.pack("QQQ", every, 3 if version >= 4 else 0, 3 if version >= 6 else 0)
    size = 8 if version < 4 else 16 if version < 6 else 24
    handle = need(LIBC.syscall(LANDLOCK_CREATE, ruleset, size, 0), "landlock_create_ruleset")
    paths = {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"), "/usr/share/zoneinfo"}
    for path in sorted(p for p in paths if p and os.path.isdir(p)):
        opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
        rule = struct.pack("=Qi", READ_FILE | READ_DIR, opened)
        need(LIBC.syscall(LANDLOCK_ADD, handle, 1, rule, 0), "landlock_add_rule")
        os.close(opened)
    need(LIBC.syscall(LANDLOCK_RESTRICT, handle, 0), "landlock_restrict_self")
    os.close(handle)


def filter_calls() -> None:
    machine = platform.machine()
    which = {"x86_64": 0, "aarch64": 1}[machine]
    load, jump_eq, jump_ge, jump_set, give = 0x20, 0x15, 0x35, 0x45, 0x06
    allow, kill = 0x7FFF0000, 0x80000000
    errno = 0x00050000
    code: list[tuple[int, int, int, int]] = [
        (load, 0, 0, 4),  # the architecture
        (jump_eq, 1, 0, AUDIT_ARCH[machine]),
        (give, 0, 0, kill),
        (load, 0, 0, 0),  # the number of the call
    ]
    if machine == "x86_64":
        code += [(jump_ge, 0, 1, 0x40000000), (give, 0, 0, kill)]  # x32
    for numbers in REFUSED.values():
        number = numbers[which]
        if number is not None:
            code += [(jump_eq, 0, 1, number), (give, 0, 0, errno | EPERM)]
    code += [
        (jump_eq, 0, 1, CLONE3[which]), (give, 0, 0, errno | ENOSYS),  # its flags cannot be looked at
        (jump_eq, 0, 4, CLONE[which]), (load, 0, 0, 16), (jump_set, 1, 0, CLONE_THREAD),
        (give, 0, 0, errno | EPERM), (give, 0, 0, allow),
        (jump_eq, 0, 4, PRLIMIT[which]), (load, 0, 0, 16), (jump_eq, 1, 0, 0),  # only its own
        (give, 0, 0, errno | EPERM), (give, 0, 0, allow),
        (give, 0, 0, allow),
    ]  # fmt: skip
    packed = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *each) for each in code))
    program = struct.pack("HxxxxxxP", len(code), ctypes.addressof(packed))
    need(LIBC.prctl(PR_SET_SECCOMP, 2, program, 0, 0), "seccomp")


def run(program: str, names: dict[str, object], most: int) -> dict[str, object]:
    import ast

    try:
        tree = ast.parse(program, "<program>")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return {"ended": "syntax", "error": f"{type(error).__name__}: {error}"}
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    try:
        exec(compile(tree, "<program>", "exec"), names)  # noqa: S102 - what this process is for
        value = None
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), "<program>", "eval"), names)  # noqa: S307
    except MemoryError:
        return {"ended": "memory", "error": "MemoryError"}
    except PermissionError as error:
        return {"ended": "refused", "error": f"PermissionError: {error}"[:2000]}
    except BaseException as error:  # also SystemExit and KeyboardInterrupt
        return {"ended": "exception", "error": f"{type(error).__name__}: {error}"[:2000]}
    try:
        text = json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        return {"ended": "result", "error": f"Its value is no JSON: {error}."}
    if len(text) > most:
        return {"ended": "result", "error": f"Its value has more than {most} bytes as JSON."}
    return {"ended": "done", "value": value}


def main() -> None:
    parent = os.getppid()
    need(LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "prctl")
    asked = json.loads(sys.stdin.buffer.read())
    if os.getppid() != parent:  # it died before the kernel was asked
        os._exit(1)
    report = os.dup(2)
    os.dup2(1, 2)
    import ast  # noqa: F401 - while files can still be read without asking

    limit(asked["memory"], asked["cpu"])
    need(LIBC.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl")
    drop_capabilities()
    confine_files()
    filter_calls()
    os.write(report, b"confined\n")
    names: dict[str, object] = {"__name__": "__main__", **asked["inputs"]}
    found = run(asked["program"], names, asked["result"])
    try:
        sys.stdout.flush()
        text = json.dumps(found)
    except BaseException as error:
        text = json.dumps({"ended": "exception", "error": type(error).__name__})
    os.write(report, text.encode())
    os._exit(0)  # not waiting for threads of the program


if __name__ == "__main__":
    try:
        main()
    except OSError as error:
        os.write(2, f"cannot confine: {error}\n".encode())
        os._exit(3)
