# Tries the walls from within and prints what gives way. Reads what must not be seen from stdin.
import json
import os
import resource
import signal
import socket
import subprocess

outside = json.load(open(0))
breaches = []


def stands(wall, attempt):
    """The attempt must fail."""
    try:
        attempt()
    except (OSError, subprocess.SubprocessError):
        return
    breaches.append(wall)


def holds(wall, so):
    if not so:
        breaches.append(wall)


# Where a wall is missing, these reach the machine itself: they leave it as it was.
def create_in(folder):
    path = f"{folder}/sandbox-probe-{os.getpid()}"
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
    os.unlink(path)


def open_to_write(path):
    os.close(os.open(path, os.O_WRONLY))


for kind, name in outside["namespaces"].items():
    holds(f"it shares the {kind} namespace", os.readlink(f"/proc/self/ns/{kind}") != name)

stands("it reads a file outside", lambda: open(outside["canary"]).read())
for path in ["/etc/shadow", "/etc/passwd", "/root/.ssh", "/sys/kernel", "/dev/tty"]:
    holds(f"it sees {path}", not os.path.exists(path))
for folder in ["/", "/usr", "/dev", "/etc", "/proc/sys/kernel"]:
    stands(f"it writes in {folder}", lambda: create_in(folder))
stands("it changes the kernel's settings", lambda: open_to_write("/proc/sys/user/max_user_namespaces"))

for mount in open("/proc/self/mountinfo"):
    point, options = mount.split()[4:6]
    own = point == "/tmp" or point.startswith(("/proc", "/dev/"))
    holds(f"it may write in {point}", own or "ro" in options.split(","))

stands("it connects to the host", lambda: socket.create_connection(("127.0.0.1", outside["port"]), 1))
holds("it has a network", [name for _, name in socket.if_nameindex()] == ["lo"])

processes = [int(name) for name in os.listdir("/proc") if name.isdigit()]
holds("it sees processes of the host", len(processes) < 10)

holds("it inherits open files", all(int(fd) <= 3 for fd in os.listdir("/proc/self/fd")))
holds("it inherits the environment", set(os.environ) <= set(outside["environment"]) | {"PWD", "OLDPWD", "SHLVL", "_"})

status = dict(line.split(":", 1) for line in open("/proc/self/status"))
holds("it has capabilities", all(int(status[name], 16) == 0 for name in ["CapPrm", "CapEff", "CapBnd"]))
holds("it can gain privileges", status["NoNewPrivs"].strip() == "1")
stands(
    "it makes namespaces of its own",
    lambda: subprocess.run(["unshare", "--user", "true"], stderr=subprocess.DEVNULL, check=True),
)

space = os.statvfs("/tmp")
holds("its folder is not bounded", space.f_blocks * space.f_frsize <= outside["disk_bytes"] + 65536)
for name in ["RLIMIT_CPU", "RLIMIT_FSIZE", "RLIMIT_DATA", "RLIMIT_NPROC", "RLIMIT_CORE"]:
    holds(f"{name} is not set", resource.getrlimit(getattr(resource, name))[1] != resource.RLIM_INFINITY)

# Last, since it leaves children: they end with the walls, or else soon.
started = 0
try:
    for _ in range(outside["processes"] + 8):
        if os.fork() == 0:
            signal.alarm(20)
            signal.pause()
        started += 1
except OSError:
    pass
holds("the number of its processes is not bounded", started < outside["processes"])
holds("it cannot start processes (their limit counts those of the host: Linux 5.14 or later is needed)", started > 4)

print("\n".join(breaches) or "the walls hold", flush=True)
os._exit(1 if breaches else 0)
