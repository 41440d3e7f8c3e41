//! What a language needs on this machine: its folders, its compiler, its environment.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use fedllm_models::eval::Language;

use super::Options;

/// A program that does nothing and ends well.
pub(super) const fn trivial(language: Language) -> &'static str {
    match language {
        Language::Python | Language::JavaScript => "",
        Language::Java => "class Main { public static void main(String[] words) {} }",
        Language::Go => "package main\nimport _ \"fmt\"\nfunc main() {}",
        Language::Cpp => "#include <vector>\nint main() {}",
        Language::Rust => "fn main() {}",
    }
}

/// How programs in a language are compiled and run within the walls.
#[derive(Debug, Default)]
pub(super) struct Toolchain {
    /// Folders to be seen, besides the system's.
    pub(super) folders: Vec<PathBuf>,
    /// What the source is called.
    pub(super) source: &'static str,
    /// A file that the compiler needs beside the source.
    pub(super) beside: Option<(&'static str, String)>,
    /// The compiler's command; empty if there is none.
    pub(super) compiler: Vec<String>,
    /// Asks the compiler for the program's tests in place of its main function.
    pub(super) tests: Option<&'static str>,
    /// The program's command. [`MEBIBYTES`] stands for what it may hold.
    pub(super) program: Vec<String>,
    pub(super) environment: Vec<(&'static str, String)>,
}

/// Stands for the memory limit in a program's command.
pub(super) const MEBIBYTES: &str = "{mebibytes}";

impl Toolchain {
    /// Finds a language's toolchain; the error says what is missing.
    pub(super) fn find(language: Language, options: &Options) -> Result<Self, String> {
        let toolchain = match language {
            Language::Python => python(options.python.as_deref())?,
            Language::JavaScript => javascript()?,
            Language::Java => java()?,
            Language::Go => go()?,
            Language::Cpp => cpp()?,
            Language::Rust => rust()?,
        };
        match toolchain.folders.iter().find(|folder| is_private(folder)) {
            Some(folder) => Err(format!(
                "{} would have to be shown to programs, and holds more than a toolchain",
                folder.display()
            )),
            None => Ok(toolchain),
        }
    }
}

/// Says where the interpreter is, past the scripts that stand in for it, and what it loads from.
const PYTHON_FOLDERS: &str = "
import os, site, sys
print(sys.executable)
print(site.USER_BASE if site.ENABLE_USER_SITE else '')
folders = {sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix}
if site.ENABLE_USER_SITE and os.path.isdir(site.USER_SITE):
    folders.add(site.USER_SITE)
print(*folders, sep='\\n')
";

fn python(chosen: Option<&Path>) -> Result<Toolchain, String> {
    let python = chosen.unwrap_or(Path::new("python3"));
    let said = output(
        Command::new(python)
            .args(["-c", PYTHON_FOLDERS])
            .env_remove("PYTHONPATH"),
        "install Python 3, or name one with --python",
    )?;
    let mut lines = said.lines();
    let executable = lines.next().unwrap_or_default().to_owned();
    let user_base = lines.next().unwrap_or_default().to_owned();
    let mut folders: Vec<PathBuf> = lines.map(PathBuf::from).collect();
    folders.extend(folders_of_links(Path::new(&executable)));
    Ok(Toolchain {
        folders,
        source: "main.py",
        program: words([&executable, "main.py"]),
        environment: vec![
            ("PYTHONDONTWRITEBYTECODE", "1".to_owned()),
            ("PYTHONHASHSEED", "0".to_owned()),
            ("PYTHONUSERBASE", user_base),
            ("MPLBACKEND", "Agg".to_owned()),
        ],
        ..Toolchain::default()
    })
}

fn javascript() -> Result<Toolchain, String> {
    let node = on_path("node", "install Node.js")?;
    Ok(Toolchain {
        folders: installation(&node),
        source: "main.js",
        program: words([&text(&node), "main.js"]),
        ..Toolchain::default()
    })
}

fn java() -> Result<Toolchain, String> {
    let hint = "install a JDK";
    let (javac, java) = (on_path("javac", hint)?, on_path("java", hint)?);
    let mut folders = [installation(&javac), installation(&java)].concat();
    // Distributions keep its settings apart.
    let settings = fs::read_dir("/etc").into_iter().flatten().flatten();
    folders.extend(
        settings
            .filter(|entry| entry.file_name().to_string_lossy().starts_with("java"))
            .map(|entry| entry.path()),
    );
    Ok(Toolchain {
        folders,
        source: "Main.java",
        compiler: words([
            &text(&javac),
            "-J-Xmx512m",
            "-J-XX:+UseSerialGC",
            "-J-XX:TieredStopAtLevel=1",
            "-J-XX:-UsePerfData",
            "-proc:none",
            "-nowarn",
            "Main.java",
        ]),
        program: words([
            &text(&java),
            &format!("-Xmx{MEBIBYTES}m"),
            "-Xms16m",
            "-XX:+UseSerialGC",
            "-XX:TieredStopAtLevel=1",
            "-XX:-UsePerfData",
            "Main",
        ]),
        ..Toolchain::default()
    })
}

/// Compiles and links by hand: `go build` wants a cache that it may write, or half a minute.
const GO_BUILD: &str = r#"
"$1/compile" -p main -complete -importcfg packages -o main.o main.go &&
"$1/link" -importcfg packages -s -w -o main main.o
"#;

fn go() -> Result<Toolchain, String> {
    let hint = "install Go";
    let go = on_path("go", hint)?;
    let variables = ["env", "GOTOOLDIR", "GOROOT", "GOCACHE"];
    let said = output(Command::new(&go).args(variables), hint)?;
    let folders: Vec<PathBuf> = said.lines().map(PathBuf::from).collect();
    let tools = folders.first().map(|tools| text(tools)).unwrap_or_default();
    // Compiles the standard library into the user's cache, if it is not there yet.
    let packages = output(
        Command::new(&go).args(["list", "-export", "-f"]).args([
            "{{if .Export}}packagefile {{.ImportPath}}={{.Export}}{{end}}",
            "std",
        ]),
        "see that `go list -export std` works",
    )?;
    Ok(Toolchain {
        folders,
        source: "main.go",
        beside: Some(("packages", packages)),
        compiler: words(["bash", "-c", GO_BUILD, "bash", &tools]),
        program: words(["./main"]),
        ..Toolchain::default()
    })
}

fn cpp() -> Result<Toolchain, String> {
    let compiler = on_path("g++", "install g++")?;
    Ok(Toolchain {
        folders: installation(&compiler),
        source: "main.cpp",
        compiler: words([
            &text(&compiler),
            "-std=c++17",
            "-O1",
            "-w",
            "-o",
            "main",
            "main.cpp",
        ]),
        program: words(["./main"]),
        ..Toolchain::default()
    })
}

fn rust() -> Result<Toolchain, String> {
    let hint = "install Rust, and a C compiler, which links its programs";
    on_path("cc", hint)?;
    let said = output(Command::new("rustc").args(["--print", "sysroot"]), hint)?;
    let sysroot = PathBuf::from(said.trim());
    let compiler = sysroot.join("bin/rustc");
    let flags = [
        "--edition=2021",
        "-Copt-level=1",
        "-Ccodegen-units=1",
        "--cap-lints=allow",
    ];
    Ok(Toolchain {
        folders: vec![sysroot],
        source: "main.rs",
        compiler: words(
            [text(&compiler).as_str()]
                .into_iter()
                .chain(flags)
                .chain(["main.rs"]),
        ),
        tests: Some("--test"),
        program: words(["./main"]),
        ..Toolchain::default()
    })
}

fn words<'a>(words: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    words.into_iter().map(str::to_owned).collect()
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// What a command prints, or what to do so that it works.
fn output(command: &mut Command, hint: &str) -> Result<String, String> {
    let program = command.get_program().to_string_lossy().into_owned();
    match command.output() {
        Ok(output) if output.status.success() => {
            Ok(String::from_utf8_lossy(&output.stdout).into_owned())
        }
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr);
            let last = said.trim().lines().last().unwrap_or("it failed").to_owned();
            Err(format!("{program}: {last}; {hint}"))
        }
        Err(error) => Err(format!("{program}: {error}; {hint}")),
    }
}

/// The file that a command's name stands for, past all links.
fn on_path(name: &str, hint: &str) -> Result<PathBuf, String> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .find_map(|folder| folder.join(name).canonicalize().ok())
        .ok_or_else(|| format!("{name} is not there; {hint}"))
}

/// The folder with the `bin` that a program is in.
fn installation(program: &Path) -> Vec<PathBuf> {
    program
        .ancestors()
        .nth(2)
        .map(Path::to_owned)
        .into_iter()
        .collect()
}

/// The folders that a file's chain of links leads through.
fn folders_of_links(file: &Path) -> Vec<PathBuf> {
    let mut folders = Vec::new();
    let mut file = file.to_owned();
    // As many links as Linux follows.
    for _ in 0..40 {
        let Some(folder) = file.parent().map(Path::to_owned) else {
            break;
        };
        folders.push(folder.clone());
        let Ok(target) = file.read_link() else {
            break;
        };
        file = folder.join(target);
    }
    folders
}

/// Whether a folder is, or holds, what no program may see.
fn is_private(folder: &Path) -> bool {
    let home = env::var_os("HOME").map(PathBuf::from);
    let homes = home
        .iter()
        .flat_map(|home| [Some(home.clone()), home.canonicalize().ok()]);
    let private = ["/root", "/home", "/proc", "/sys", "/dev", "/tmp", "/run"].map(PathBuf::from);
    let real = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
    !folder.is_absolute()
        || private
            .into_iter()
            .chain(homes.flatten())
            .any(|private| private.starts_with(folder) || private.starts_with(&real))
        || ["/etc", "/var"]
            .iter()
            .any(|system| real == Path::new(system))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_os = "linux")]
    fn a_toolchain_shows_no_home() {
        let private = [
            "/",
            "/home",
            "/root",
            "/etc",
            "/tmp",
            "/usr/../home",
            "relative",
        ];
        assert!(private.iter().all(|folder| is_private(Path::new(folder))));
        let fit = [
            "/usr/lib/jvm",
            "/opt/python",
            "/root/.toolchain",
            "/etc/java-17",
        ];
        assert!(fit.iter().all(|folder| !is_private(Path::new(folder))));
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn links_lead_through_folders() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        for name in ["one", "two", "three"] {
            fs::create_dir(path(name)).unwrap();
        }
        std::os::unix::fs::symlink("../two/python", path("one/python")).unwrap();
        std::os::unix::fs::symlink(path("three/python"), path("two/python")).unwrap();
        fs::write(path("three/python"), "").unwrap();
        let folders = folders_of_links(&path("one/python"));
        assert_eq!(folders, [path("one"), path("one/../two"), path("three")]);
    }
}
