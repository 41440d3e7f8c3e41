//! The walls around a program, and the command that builds them and runs it within.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::Limits;

/// The namespaces that a program does not share with us, as /proc names them.
pub(super) const NAMESPACES: [&str; 6] = ["user", "mnt", "pid", "net", "ipc", "uts"];

/// All that a program's environment holds, besides what its language needs.
pub(super) const ENVIRONMENT: [(&str, &str); 7] = [
    ("PATH", "/usr/bin:/usr/sbin:/bin:/sbin:/usr/local/bin"),
    ("HOME", "/tmp"),
    ("TMPDIR", "/tmp"),
    ("LANG", "C.UTF-8"),
    // Libraries start a thread for each core, which is no use to a small program.
    ("OMP_NUM_THREADS", "1"),
    ("OPENBLAS_NUM_THREADS", "1"),
    ("GOMAXPROCS", "2"),
];

/// What a program can see of the machine, where it is there.
const SYSTEM: [&str; 8] = [
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/etc/alternatives",
    "/etc/ld.so.cache",
];

/// Whom programs run as if we are root: a user who owns nothing, in the range that Linux
/// distributions leave unused.
const NOBODY: u32 = 61_000;

/// A path within the walls.
#[derive(Clone, Debug)]
enum View {
    /// The same as outside, read-only.
    Same(PathBuf),
    /// A link.
    Link(PathBuf, PathBuf),
}

impl View {
    fn path(&self) -> &Path {
        let (Self::Same(path) | Self::Link(path, _)) = self;
        path
    }
}

/// A way of building walls.
#[derive(Debug)]
pub(super) struct Walls {
    backend: Backend,
    system: Vec<View>,
}

#[derive(Debug)]
enum Backend {
    /// Our own script over util-linux. Root becomes another user, if there is another.
    Namespaces {
        root: bool,
        user: Option<u32>,
    },
    Bubblewrap,
}

impl Walls {
    pub(super) fn namespaces() -> io::Result<Self> {
        let root = is_root(&fs::read_to_string("/proc/self/status")?);
        let map = fs::read_to_string("/proc/self/uid_map")?;
        let user = (root && maps(&map, NOBODY)).then_some(NOBODY);
        Self::new(Backend::Namespaces { root, user })
    }

    pub(super) fn bubblewrap() -> io::Result<Self> {
        Self::new(Backend::Bubblewrap)
    }

    fn new(backend: Backend) -> io::Result<Self> {
        let present = SYSTEM
            .map(Path::new)
            .into_iter()
            .filter(|path| path.exists());
        let system = present.map(|path| match path.read_link() {
            Ok(target) => View::Link(path.to_owned(), target),
            Err(_) => View::Same(path.to_owned()),
        });
        Ok(Self {
            backend,
            system: system.collect(),
        })
    }

    pub(super) const fn name(&self) -> &'static str {
        match self.backend {
            Backend::Namespaces { .. } => "unshare",
            Backend::Bubblewrap => "bubblewrap",
        }
    }

    /// The command that runs [`program.sh`](limit_words) within; its words follow.
    pub(super) fn command(&self, folders: &[PathBuf], limits: &Limits) -> Command {
        let views = self.views(folders);
        // It ends when we do.
        let mut command = Command::new("setpriv");
        command.args([
            "--pdeathsig",
            "KILL",
            "setsid",
            "bash",
            "-c",
            include_str!("enter.sh"),
        ]);
        command.arg("enter");
        match &self.backend {
            Backend::Namespaces { root, user } => {
                command.args(["unshare", "--mount", "--pid", "--net", "--ipc", "--uts"]);
                command.args(["--fork", "--kill-child=KILL"]);
                if !root {
                    command.args(["--user", "--map-root-user"]);
                }
                command.args(["bash", "-c", include_str!("walls.sh"), "walls"]);
                command
                    .arg(limits.disk_bytes.to_string())
                    .arg(limits.files.to_string());
                command.arg(user.map(|user| user.to_string()).unwrap_or_default());
                command.args(views.iter().map(View::path));
            }
            Backend::Bubblewrap => {
                command.args([
                    "bwrap",
                    "--die-with-parent",
                    "--unshare-user",
                    "--disable-userns",
                ]);
                command.args([
                    "--unshare-ipc",
                    "--unshare-pid",
                    "--unshare-net",
                    "--unshare-uts",
                ]);
                command.args(["--cap-drop", "ALL", "--proc", "/proc"]);
                command.args(["--perms", "1777", "--size", &limits.disk_bytes.to_string()]);
                command.args(["--tmpfs", "/tmp", "--chdir", "/tmp"]);
                for view in views {
                    match view {
                        View::Same(path) => command.arg("--ro-bind").arg(&path).arg(&path),
                        View::Link(path, target) => command.arg("--symlink").arg(target).arg(path),
                    };
                }
                for device in ["/dev/null", "/dev/zero", "/dev/random", "/dev/urandom"] {
                    command.args(["--dev-bind", device, device]);
                }
                command.args(["--remount-ro", "/"]);
            }
        }
        command.args(["--", "bash", "-c", include_str!("program.sh"), "program"]);
        command.env_clear().envs(ENVIRONMENT);
        command
    }

    /// The system's paths and those folders that are not below them or below one another.
    fn views(&self, folders: &[PathBuf]) -> Vec<View> {
        let mut folders: Vec<_> = folders.iter().filter(|folder| folder.exists()).collect();
        folders.sort();
        let mut views = self.system.clone();
        for folder in folders {
            if !views.iter().any(|view| folder.starts_with(view.path())) {
                views.push(View::Same(folder.clone()));
            }
        }
        views
    }
}

/// The first words of `program.sh`: what is bounded from within.
pub(super) fn limit_words(limits: &Limits) -> [String; 5] {
    [
        limits.disk_bytes.div_ceil(1024),
        u64::from(limits.processes),
        limits.compile.as_secs().max(1),
        (2 * limits.memory_bytes).div_ceil(1024),
        limits.cpu.as_secs_f64().ceil().max(1.0) as u64,
    ]
    .map(|limit| limit.to_string())
}

/// Whether a process's effective user is root.
fn is_root(status: &str) -> bool {
    let users = status.lines().find_map(|line| line.strip_prefix("Uid:"));
    users.and_then(|users| users.split_whitespace().nth(1)) == Some("0")
}

/// Whether a user namespace's map has a user.
fn maps(map: &str, user: u32) -> bool {
    map.lines().any(|line| {
        let mut fields = line.split_whitespace().map(str::parse::<u64>);
        match (fields.next(), fields.next(), fields.next()) {
            (Some(Ok(first)), Some(_), Some(Ok(count))) => {
                (first..first + count).contains(&u64::from(user))
            }
            _ => false,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_is_known_by_its_effective_user() {
        assert!(is_root("Name:\tx\nUid:\t1000\t0\t0\t0\nGid:\t0\t0\t0\t0\n"));
        assert!(!is_root(
            "Name:\tx\nUid:\t0\t1000\t0\t0\nGid:\t0\t0\t0\t0\n"
        ));
    }

    #[test]
    fn a_map_has_the_users_of_its_ranges() {
        let map = "         0     100000       1000\n      5000          1          1\n";
        assert!([0, 999, 5000].iter().all(|user| maps(map, *user)));
        assert!([1000, 4999, 5001].iter().all(|user| !maps(map, *user)));
    }

    #[test]
    fn a_folder_is_shown_once() {
        let folder = tempfile::tempdir().unwrap();
        let (outer, inner) = (folder.path().join("a"), folder.path().join("a/b"));
        fs::create_dir_all(&inner).unwrap();
        let walls = Walls {
            backend: Backend::Bubblewrap,
            system: Vec::new(),
        };
        let views = walls.views(&[inner.clone(), outer.clone(), inner, folder.path().join("c")]);
        assert_eq!(views.iter().map(View::path).collect::<Vec<_>>(), [outer]);
    }
}
