//! Programs that try to do harm: each is stopped, and the machine is as it was.

use std::io::ErrorKind;
use std::net::TcpListener;
use std::time::Instant;
use std::{fs, process};

use super::super::walls::ENVIRONMENT;
use super::*;

/// Bounds that hostile programs reach soon.
fn tight() -> Limits {
    Limits {
        wall: Duration::from_secs(30),
        memory_bytes: 128 << 20,
        output_bytes: 64 << 10,
        processes: 32,
        disk_bytes: 16 << 20,
        files: 512,
        ..Limits::default()
    }
}

/// What a hostile program ends with everywhere.
fn ends(source: &str, limits: &Limits, expected: impl Fn(&Outcome) -> bool) {
    for sandbox in sandboxes() {
        let outcome = sandbox.run(&python(source), limits).unwrap();
        assert!(
            expected(&outcome),
            "{}: {outcome:?}\n{source}",
            sandbox.walls.name()
        );
    }
}

fn fails_with(outcome: &Outcome, words: &str) -> bool {
    matches!(outcome, Outcome::Failed { stderr_tail, .. } if stderr_tail.contains(words))
}

#[test]
fn a_fork_bomb_runs_out_of_processes() {
    // Pages that its processes share count for each.
    let roomy = Limits {
        memory_bytes: 4 << 30,
        ..tight()
    };
    ends("import os\nwhile True: os.fork()", &roomy, |outcome| {
        fails_with(outcome, "Resource temporarily unavailable") || *outcome == Outcome::TimedOut
    });
    let stubborn = "
import os
open('/proc/self/comm', 'w').write('sandboxed-bomb')
while True:
    try: os.fork()
    except OSError: pass
";
    let brief = Limits {
        wall: Duration::from_secs(2),
        ..roomy
    };
    ends(stubborn, &brief, |outcome| *outcome == Outcome::TimedOut);
    #[cfg(target_os = "linux")]
    assert!(is_gone("sandboxed-bomb"));
}

#[test]
fn memory_runs_out() {
    ends(
        "held = []\nwhile True: held.append(b'x' * (1 << 20))",
        &tight(),
        |outcome| *outcome == Outcome::TooMuchMemory || fails_with(outcome, "MemoryError"),
    );
    ends("held = bytearray(10 << 30)", &tight(), |outcome| {
        fails_with(outcome, "MemoryError")
    });
    let shared_out = "
import os, time
for _ in range(8):
    if os.fork() == 0:
        held = b'x' * (40 << 20)
        time.sleep(60)
time.sleep(60)
";
    ends(shared_out, &tight(), |outcome| {
        *outcome == Outcome::TooMuchMemory
    });
}

#[test]
fn time_runs_out() {
    let began = Instant::now();
    let brief = Limits {
        wall: Duration::from_secs(2),
        ..tight()
    };
    ends("while True: pass", &brief, |outcome| {
        *outcome == Outcome::TimedOut
    });
    ends("import time\ntime.sleep(600)", &brief, |outcome| {
        *outcome == Outcome::TimedOut
    });
    let busy = Limits {
        cpu: Duration::from_secs(1),
        wall: Duration::from_secs(300),
        ..tight()
    };
    ends("while True: pass", &busy, |outcome| {
        *outcome == Outcome::TimedOut
    });
    assert!(began.elapsed() < Duration::from_secs(240));
}

#[test]
fn output_runs_out() {
    for stream in ["stdout", "stderr"] {
        let flood = format!("import sys\nwhile True: sys.{stream}.write('x' * 1000)");
        ends(&flood, &tight(), |outcome| {
            *outcome == Outcome::TooMuchOutput
        });
        let brief = format!("import sys\nsys.{stream}.write('x' * 65537)");
        ends(&brief, &tight(), |outcome| {
            *outcome == Outcome::TooMuchOutput
        });
        let enough = format!("import sys\nsys.{stream}.write('x' * 65536)");
        ends(&enough, &tight(), |outcome| {
            matches!(outcome, Outcome::Passed { .. })
        });
    }
}

#[test]
fn disk_runs_out() {
    let one_file = "file = open('flood', 'wb')\nwhile True: file.write(b'x' * 65536)";
    ends(one_file, &tight(), |outcome| {
        fails_with(outcome, "File too large") || fails_with(outcome, "No space left")
    });
    let some_files = "
for number in range(64):
    open(f'flood{number}', 'wb').write(b'x' * (1 << 20))
";
    ends(some_files, &tight(), |outcome| {
        fails_with(outcome, "No space left")
    });
    let many_files = "for number in range(10_000): open(f'flood{number}', 'w')";
    for sandbox in sandboxes()
        .iter()
        .filter(|sandbox| sandbox.walls.name() == "unshare")
    {
        let outcome = sandbox.run(&python(many_files), &tight()).unwrap();
        assert!(fails_with(&outcome, "No space left"), "{outcome:?}");
    }
}

#[test]
fn files_outside_are_neither_seen_nor_written() {
    let folder = tempfile::tempdir().unwrap();
    let secret = folder.path().join("secret");
    fs::write(&secret, "not to be seen").unwrap();
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
    // Should a wall be missing, nothing but the folder above comes to harm.
    let thief = format!(
        "
import os
paths = [{secret:?}, {manifest:?}, '/etc/shadow', '/etc/passwd']
for root in ['', '/proc/1/root', '/proc/self/root/..', '/proc/1/cwd/..', '/tmp/..', '/dev/fd/0/..']:
    for number, path in enumerate(paths):
        link = f'link{{number}}'
        os.symlink(root + path, link)
        for way in [root + path, link]:
            try: print(open(way).read())
            except OSError: pass
        os.unlink(link)
    for way in [{secret:?}, {new:?}]:
        try: open(root + way, 'w').write('harmed')
        except OSError: pass
        os.symlink(root + way, 'link')
        try: open('link', 'w').write('harmed')
        except OSError: pass
        os.unlink('link')
for way in ['/usr/bin/env', '/usr/bin/bash']:
    try: print(open(way, 'r+b'))
    except OSError: pass
    try: print(os.link(way, 'mine'))
    except OSError: pass
",
        new = folder.path().join("new"),
    );
    for sandbox in sandboxes() {
        assert_eq!(
            printed(sandbox, &python(&thief)),
            "",
            "{}",
            sandbox.walls.name()
        );
        assert_eq!(fs::read_to_string(&secret).unwrap(), "not to be seen");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}

#[test]
fn a_listener_of_the_host_is_out_of_reach() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let port = listener.local_addr().unwrap().port();
    let caller = format!("import socket\nsocket.create_connection(('127.0.0.1', {port}), 1)");
    ends(&caller, &tight(), |outcome| fails_with(outcome, "Error"));
    assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
}

#[test]
#[cfg(target_os = "linux")]
fn other_processes_are_out_of_reach() {
    let mut bystander = process::Command::new("sleep").arg("600").spawn().unwrap();
    let killer = format!(
        "
import os
for target in [{}, {}, 1, -1]:
    try: os.kill(target, 9)
    except OSError: pass
for name in os.listdir('/proc'):
    if name.isdigit(): print(open(f'/proc/{{name}}/comm').read())
",
        bystander.id(),
        process::id(),
    );
    for sandbox in sandboxes() {
        let seen = printed(sandbox, &python(&killer));
        assert!(
            !seen.contains("sleep") && !seen.contains("fedllm"),
            "{seen}"
        );
        assert_eq!(bystander.try_wait().unwrap(), None);
    }
    bystander.kill().unwrap();
    bystander.wait().unwrap();
}

#[test]
#[cfg(target_os = "linux")]
fn a_daemon_ends_with_its_program() {
    let daemon = "
import os, signal, time
reader, writer = os.pipe()
if os.fork() == 0:
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    if os.fork() == 0:
        open('/proc/self/comm', 'w').write('sandboxed-devil')
        os.write(writer, b'x')
        os.closerange(0, 100)
        time.sleep(600)
    os._exit(0)
os.read(reader, 1)
";
    for sandbox in sandboxes() {
        let began = Instant::now();
        printed(sandbox, &python(daemon));
        assert!(began.elapsed() < Duration::from_secs(60));
        assert!(is_gone("sandboxed-devil"));
    }
}

#[test]
fn the_environment_is_not_seen() {
    let curious = python("import os\nprint(*os.environ, sep='\\n')");
    for sandbox in sandboxes() {
        let own = &sandbox.toolchain(Language::Python).unwrap().environment;
        let known: Vec<_> = own.iter().map(|(name, _)| *name).collect();
        for name in printed(sandbox, &curious).lines() {
            let shell = ["PWD", "OLDPWD", "SHLVL", "_"].contains(&name);
            let ours = ENVIRONMENT.iter().any(|(ours, _)| *ours == name);
            assert!(shell || ours || known.contains(&name), "{name}");
        }
    }
}

/// Whether no process of the machine has a name, or soon none has it: the dying are still listed.
#[cfg(target_os = "linux")]
fn is_gone(name: &str) -> bool {
    let is_running = || {
        fs::read_dir("/proc").unwrap().flatten().any(|entry| {
            fs::read_to_string(entry.path().join("comm")).is_ok_and(|comm| comm.trim() == name)
        })
    };
    let began = Instant::now();
    while is_running() && began.elapsed() < Duration::from_secs(10) {
        std::thread::sleep(Duration::from_millis(10));
    }
    !is_running()
}
