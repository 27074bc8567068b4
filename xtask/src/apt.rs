//! Debian and Ubuntu packages: what is missing, why it is wanted, and its installation.

use std::{
    collections::BTreeSet,
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::{
    cluster,
    error::{Context, Result, failed},
    plugins, process,
};

/// Something that a command of ours cannot do without.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    /// A C compiler and make.
    CompilerAndMake,
    /// libclang with its headers.
    Libclang,
    /// PostgreSQL's server and client programs.
    Postgresql,
    /// MariaDB's server and client programs.
    Mariadb,
    /// What compiling a driver against MariaDB's client library needs.
    MariadbHeaders,
    /// The sysbench program.
    Sysbench,
    /// The haproxy program.
    Haproxy,
    /// Python 3 with the venv module.
    PythonVenv,
    /// Python's headers.
    PythonHeaders,
    /// Node.js and npm.
    Node,
    /// The openssl program.
    Openssl,
    /// The strace program.
    Strace,
    /// A compiler for `wasm32-unknown-unknown`.
    WasmTarget,
    /// A linker for it.
    WasmLinker,
}

impl Need {
    /// Whether the machine has it.
    pub(crate) fn is_met(self) -> bool {
        match self {
            Self::CompilerAndMake => has_all(&["cc", "make"]) && Path::new("/usr/include/stdlib.h").exists(),
            Self::Libclang => has_libclang(),
            Self::Postgresql => cluster::programs().is_some(),
            Self::Mariadb => has_all(&["mariadbd", "mariadb-install-db", "mariadb", "mariadb-dump"]),
            Self::MariadbHeaders => has_mariadb_headers(),
            Self::Sysbench => has_all(&["sysbench"]),
            Self::Haproxy => has_all(&["haproxy"]),
            Self::PythonVenv => has_python_venv(),
            Self::PythonHeaders => has_python_headers(),
            Self::Node => has_all(&["node", "npm"]),
            Self::Openssl => has_all(&["openssl"]),
            Self::Strace => has_all(&["strace"]),
            Self::WasmTarget => plugins::has_target() || plugins::debian_rustc().is_some(),
            // The target of a toolchain comes with its linker.
            Self::WasmLinker => plugins::has_target() || plugins::linker().is_some(),
        }
    }

    fn packages(self) -> &'static [&'static str] {
        match self {
            Self::CompilerAndMake => &["build-essential"],
            Self::Libclang => &["libclang-dev"],
            Self::Postgresql => &["postgresql"],
            Self::Mariadb => &["mariadb-server", "mariadb-client"],
            Self::MariadbHeaders => &["libmariadb-dev", "pkg-config"],
            Self::Sysbench => &["sysbench"],
            Self::Haproxy => &["haproxy"],
            Self::PythonVenv => &["python3", "python3-venv"],
            Self::PythonHeaders => &["python3-dev"],
            Self::Node if has_all(&["node"]) => &["npm"],
            Self::Node => &["nodejs", "npm"],
            Self::Openssl => &["openssl"],
            Self::Strace => &["strace"],
            Self::WasmTarget => &["rustc-web", "rust-web-src"],
            Self::WasmLinker => &["lld"],
        }
    }

    fn why(self) -> &'static str {
        match self {
            Self::CompilerAndMake => {
                "a C compiler and make: the TLS library, the allocator and the SQL grammar are C"
            }
            Self::Libclang => "libclang: the bindings to PostgreSQL's own SQL grammar are made with it",
            Self::Postgresql => {
                "PostgreSQL's server, psql and pgbench, for a private server in a temporary directory"
            }
            Self::Mariadb => {
                "MariaDB's server, mariadb and mariadb-dump, for private servers in temporary directories"
            }
            Self::MariadbHeaders => {
                "MariaDB's client library: a driver written in Python is compiled with it"
            }
            Self::Sysbench => "sysbench: the load of the MySQL benchmark and demo",
            Self::Haproxy => "HAProxy: what the MySQL benchmark compares with",
            Self::PythonHeaders => "Python's headers: that driver is compiled with them",
            Self::PythonVenv => {
                "Python with venv: drivers written in Python are tested in an environment of their own"
            }
            Self::Node => "Node.js and npm: drivers written in JavaScript are tested",
            Self::Openssl => "openssl: makes the demo's self-signed certificate",
            Self::Strace => "strace: counts the proxies' system calls",
            Self::WasmTarget => {
                "Rust with its standard library's source, for WebAssembly, which plugins are compiled to \
                 (`rustup target add wasm32-unknown-unknown` instead needs no package)"
            }
            Self::WasmLinker => "LLVM's linker, for plugins",
        }
    }
}

/// Installs those of `needs` that are not met, after saying what and why. Does nothing, silently, when all are.
///
/// Where installing a server made the system start one of its own, that one is stopped again: it is not asked for, and
/// it holds a port and memory.
pub(crate) fn provide(needs: &[Need]) -> Result<()> {
    let missing: Vec<Need> = needs.iter().copied().filter(|need| !need.is_met()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let packages: BTreeSet<&str> = missing.iter().flat_map(|need| need.packages()).copied().collect();
    println!("Missing on this machine, to be installed with apt-get:");
    for need in &missing {
        println!("  {:<16} {}", need.packages().join(" "), need.why());
    }
    if process::on_path("apt-get").is_none() {
        let names = packages.iter().copied().collect::<Vec<_>>().join(" ");
        return failed(format!(
            "there is no apt-get here; install the counterparts of these Debian packages yourself: {names}"
        ));
    }
    let (running, active) = (online_clusters(), active_services());
    if packages.iter().any(|package| !has_candidate(package)) {
        update()?;
    }
    // An index from before the archive's last change names files that are gone, or versions that are too old.
    if install(&packages).is_err() || !missing.iter().all(|need| need.is_met()) {
        println!("That did not do; trying once more with fresh package lists.");
        update()?;
        install(&packages)?;
    }
    for cluster in online_clusters().difference(&running) {
        stop_cluster(cluster)?;
    }
    for service in active_services().difference(&active) {
        stop_service(service)?;
    }
    match missing.iter().find(|need| !need.is_met()) {
        Some(need) => failed(format!("after the installation this is still not found: {}", need.why())),
        None => Ok(()),
    }
}

fn update() -> Result<()> {
    println!("Reading the package lists (apt-get update).");
    as_root("apt-get").and_then(|mut command| process::run_shown(command.args(["-q", "update"])))
}

fn install(packages: &BTreeSet<&str>) -> Result<()> {
    let mut command = as_root("apt-get")?;
    command.args(["-q", "-y", "--no-install-recommends", "install"]).args(packages);
    process::run_shown(&mut command)
}

/// Whether apt's lists know a package whose name begins like this.
pub(crate) fn knows(start: &str) -> bool {
    let names = process::run(Command::new("apt-cache").args(["pkgnames", start]));
    names.is_ok_and(|names| !names.trim().is_empty())
}

/// Whether apt's lists know a version to install.
fn has_candidate(package: &str) -> bool {
    let policy = process::run(Command::new("apt-cache").args(["policy", package]).env("LC_ALL", "C"));
    policy.is_ok_and(|text| {
        text.lines()
            .any(|line| line.trim().strip_prefix("Candidate: ").is_some_and(|version| version != "(none)"))
    })
}

/// A command that runs as root: as it is when we are root, else through sudo, which may ask for a password.
fn as_root(program: &str) -> Result<Command> {
    let mut command = if rustix::process::geteuid().is_root() {
        let mut command = Command::new(program);
        command.env("DEBIAN_FRONTEND", "noninteractive");
        command
    } else if process::on_path("sudo").is_some() {
        let mut command = Command::new("sudo");
        command.args(["env", "DEBIAN_FRONTEND=noninteractive", program]);
        command
    } else {
        return failed(format!("{program} needs root, and sudo is not here; run this as root once"));
    };
    command.stdin(Stdio::inherit());
    Ok(command)
}

/// Debian's system clusters that run now, as (version, name).
fn online_clusters() -> BTreeSet<(String, String)> {
    let Some(list) = process::on_path("pg_lsclusters") else { return BTreeSet::new() };
    let text = process::run(Command::new(list).arg("-h")).unwrap_or_default();
    let clusters = text.lines().filter_map(|line| {
        let mut fields = line.split_whitespace();
        let (version, name, _port, status) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
        status.starts_with("online").then(|| (version.to_owned(), name.to_owned()))
    });
    clusters.collect()
}

fn stop_cluster((version, name): &(String, String)) -> Result<()> {
    println!(
        "The package started a system-wide PostgreSQL {version} \"{name}\", which nobody asked for: stopping it."
    );
    println!("  (It would start again at the next boot; to prevent that: systemctl disable postgresql)");
    let mut command = as_root("pg_ctlcluster")?;
    process::run_shown(command.args([version, name, "stop"]))
}

/// Those of the servers whose packages start a service that are running as one now.
fn active_services() -> BTreeSet<&'static str> {
    let is_active = |service: &&str| {
        let mut ask = if has_systemd() {
            let mut systemctl = Command::new("systemctl");
            systemctl.args(["is-active", "--quiet", service]);
            systemctl
        } else {
            if !Path::new("/etc/init.d").join(service).exists() {
                return false;
            }
            let mut script = Command::new(Path::new("/etc/init.d").join(service));
            script.arg("status");
            script
        };
        process::run(&mut ask).is_ok()
    };
    ["mariadb", "haproxy"].into_iter().filter(is_active).collect()
}

fn stop_service(service: &str) -> Result<()> {
    println!("The package started a system-wide {service}, which nobody asked for: stopping it.");
    println!("  (It would start again at the next boot; to prevent that: systemctl disable {service})");
    let mut command = if has_systemd() {
        let mut systemctl = as_root("systemctl")?;
        systemctl.args(["stop", service]);
        systemctl
    } else {
        let mut script = as_root(&format!("/etc/init.d/{service}"))?;
        script.arg("stop");
        script
    };
    process::run_shown(&mut command)
}

/// Whether systemd runs this machine. Source: sd_booted(3).
fn has_systemd() -> bool {
    Path::new("/run/systemd/system").is_dir()
}

fn has_all(programs: &[&str]) -> bool {
    programs.iter().all(|program| process::on_path(program).is_some())
}

fn has_python_venv() -> bool {
    // The venv module alone is not enough: Debian keeps ensurepip, which it calls, in python3-venv.
    let mut python = Command::new("python3");
    process::run(python.args(["-c", "import venv, ensurepip"])).is_ok()
}

fn has_python_headers() -> bool {
    let script = "import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_path('include') + '/Python.h'))";
    process::run(Command::new("python3").args(["-c", script])).is_ok()
}

fn has_mariadb_headers() -> bool {
    let mut ask = Command::new("pkg-config");
    process::run(ask.args(["--exists", "libmariadb"])).is_ok()
}

/// The library and the compiler's own headers, which come in another package.
fn has_libclang() -> bool {
    if env::var_os("LIBCLANG_PATH").is_some() {
        return true;
    }
    let mut directories: Vec<PathBuf> =
        ["/usr/lib", "/usr/lib64", "/usr/local/lib"].map(PathBuf::from).into();
    directories.extend(subdirectories(Path::new("/usr/lib")));
    let llvm = subdirectories(Path::new("/usr/lib"))
        .into_iter()
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("llvm-")));
    let llvm_libraries: Vec<PathBuf> = llvm.map(|path| path.join("lib")).collect();
    directories.extend(llvm_libraries.iter().cloned());
    let library = directories.iter().any(|directory| has_file(directory, "libclang", ".so"));
    directories.push(PathBuf::from("/usr/lib"));
    let headers = directories
        .iter()
        .flat_map(|directory| subdirectories(&directory.join("clang")))
        .any(|version| version.join("include/stddef.h").exists());
    library && headers
}

fn subdirectories(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    entries.filter_map(|entry| Some(entry.ok()?.path())).filter(|path| path.is_dir()).collect()
}

/// A file such as `libclang-14.so.1`, but not `libclang-cpp.so`.
fn has_file(directory: &Path, start: &str, part: &str) -> bool {
    let Ok(entries) = fs::read_dir(directory) else { return false };
    entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).any(|name| {
        name.strip_prefix(start).is_some_and(|rest| {
            let version_or_so = rest.starts_with(['.', '-']) && !rest.starts_with("-cpp");
            version_or_so && rest.contains(part)
        })
    })
}

/// Where packages that are only unpacked come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// This Debian release, from the mirror that the machine's own apt uses.
    Debian(&'static str),
    /// The sources of the machine's own apt.
    Own,
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Debian(release) => write!(f, "Debian {release}"),
            Self::Own => f.write_str("this machine's own sources"),
        }
    }
}

/// Packages of another release, unpacked into a directory and touching nothing else of the machine.
///
/// A private apt configuration with an empty list of installed packages makes apt fetch everything down to the C
/// library, so what is unpacked runs with its own loader whatever the machine's release is.
pub(crate) struct ForeignRelease {
    directory: PathBuf,
    architecture: String,
}

impl ForeignRelease {
    /// Fetches and unpacks packages of `origin` into `directory/root`: of each name that package, else the last that
    /// begins with it, such as `mysql-server-core-8.4` for `mysql-server-core-8`. Needs no root. Does nothing when that has been done
    /// before.
    pub(crate) fn unpack(origin: Origin, names: &[&str], directory: &Path) -> Result<Self> {
        let architecture = process::run(Command::new("dpkg").arg("--print-architecture"))?.trim().to_owned();
        let foreign = Self { directory: directory.to_path_buf(), architecture };
        let done = directory.join("unpacked");
        let wanted = format!("{origin} {}", names.join(" "));
        if fs::read_to_string(&done).is_ok_and(|text| text == wanted) {
            return Ok(foreign);
        }
        if directory.exists() {
            fs::remove_dir_all(directory).context(format!("removing {}", directory.display()))?;
        }
        foreign.configure(origin)?;
        println!("Fetching {} of {origin} (nothing is installed, only unpacked).", names.join(", "));
        process::run(foreign.apt("apt-get").args(["-q", "update"]))?;
        let packages = names.iter().map(|name| foreign.last_package(name)).collect::<Result<Vec<_>>>()?;
        process::run(
            foreign
                .apt("apt-get")
                .args(["-q", "-y", "--download-only", "--no-install-recommends", "install"])
                .args(packages),
        )?;
        foreign.extract()?;
        fs::write(&done, wanted).context(format!("writing {}", done.display()))?;
        Ok(foreign)
    }

    fn last_package(&self, start: &str) -> Result<String> {
        let text = process::run(self.apt("apt-cache").args(["pkgnames", start]))?;
        let last = text.lines().max_by_key(|name| (*name == start, *name));
        last.map_or_else(|| failed(format!("no package {start} is to be had")), |name| Ok(name.to_owned()))
    }

    /// A command for a program of the release, by its path from the root, under that release's own loader.
    pub(crate) fn command(&self, program: &str) -> Result<Command> {
        let root = self.directory.join("root");
        let (loader, triplet) = match self.architecture.as_str() {
            "amd64" => ("usr/lib64/ld-linux-x86-64.so.2", "x86_64-linux-gnu"),
            "arm64" => ("usr/lib/ld-linux-aarch64.so.1", "aarch64-linux-gnu"),
            other => return failed(format!("no loader is known here for architecture {other}")),
        };
        let mut command = Command::new(root.join(loader));
        command.arg("--library-path").arg(root.join("usr/lib").join(triplet)).arg(root.join(program));
        Ok(command)
    }

    /// The path of a program in the directory.
    pub(crate) fn path(&self, program: &str) -> PathBuf {
        self.directory.join("root").join(program)
    }

    fn apt(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("APT_CONFIG", self.directory.join("apt.conf")).env("DEBIAN_FRONTEND", "noninteractive");
        command
    }

    fn configure(&self, origin: Origin) -> Result<()> {
        const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
        let path = self.directory.display();
        for name in ["etc/sources", "state/lists/partial", "cache/archives/partial"] {
            let name = self.directory.join(name);
            fs::create_dir_all(&name).context(format!("creating {}", name.display()))?;
        }
        // The sandbox user of apt could not enter a directory that only we may read.
        let mut configuration = format!(
            "Dir::State \"{path}/state\";\n\
             Dir::State::status \"{path}/status\";\n\
             Dir::Cache \"{path}/cache\";\n\
             APT::Architecture \"{}\";\n\
             APT::Sandbox::User \"\";\n\
             Acquire::Languages \"none\";\n",
            self.architecture
        );
        let mut source = String::new();
        if let Origin::Debian(release) = origin {
            if !Path::new(KEYRING).exists() {
                return failed(format!("{KEYRING} is not here, so Debian's packages cannot be checked"));
            }
            let mirror = debian_mirror()?;
            source = format!(
                "Types: deb\nURIs: {mirror}\nSuites: {release}\nComponents: main\nSigned-By: {KEYRING}\n"
            );
            configuration.push_str(&format!(
                "Dir::Etc \"{path}/etc\";\n\
                 Dir::Etc::sourcelist \"/dev/null\";\n\
                 Dir::Etc::sourceparts \"{path}/etc/sources\";\n"
            ));
        }
        for (name, text) in
            [("etc/sources/debian.sources", source.as_str()), ("status", ""), ("apt.conf", &configuration)]
        {
            let name = self.directory.join(name);
            fs::write(&name, text).context(format!("writing {}", name.display()))?;
        }
        Ok(())
    }

    fn extract(&self) -> Result<()> {
        let root = self.directory.join("root");
        // Newer releases have these directories under usr only; older packages still name the old places.
        for name in ["bin", "lib", "sbin", "lib64"] {
            let directory = root.join("usr").join(name);
            fs::create_dir_all(&directory).context(format!("creating {}", directory.display()))?;
            std::os::unix::fs::symlink(Path::new("usr").join(name), root.join(name))
                .context(format!("linking {name}"))?;
        }
        let archives = self.directory.join("cache/archives");
        let entries = fs::read_dir(&archives).context(format!("reading {}", archives.display()))?;
        for entry in entries {
            let file = entry.context("reading a directory")?.path();
            if file.extension().is_some_and(|extension| extension == "deb") {
                let mut unpack = Command::new("sh");
                unpack.args(["-c", "dpkg-deb --fsys-tarfile \"$1\" | tar -x -C \"$2\" --keep-directory-symlink --no-same-owner", "sh"]);
                process::run(unpack.arg(&file).arg(&root))?;
                fs::remove_file(&file).context(format!("removing {}", file.display()))?;
            }
        }
        Ok(())
    }
}

/// The address of this machine's Debian mirror, as apt itself tells it.
fn debian_mirror() -> Result<String> {
    let format = "$(ORIGIN) $(CODENAME) $(REPO_URI)";
    let mut command = Command::new("apt-get");
    let text = process::run(command.args(["indextargets", "--format", format, "Created-By: Packages"]))?;
    let targets = text.lines().filter_map(|line| {
        let mut fields = line.split_whitespace();
        Some((fields.next()?, fields.next()?, fields.next()?))
    });
    // The plain release, not its updates or security archive, which live elsewhere and have other suites.
    let mut mirrors = targets.filter(|(origin, codename, _)| *origin == "Debian" && !codename.contains('-'));
    mirrors.next().map_or_else(
        || failed("apt's sources name no Debian mirror (on a fresh machine run apt-get update first)"),
        |(_, _, address)| Ok(address.to_owned()),
    )
}
