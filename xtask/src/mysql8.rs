//! `cargo xtask mysql8`: the tests with a real MySQL 8, where one can be had.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use crate::{
    apt::{self, ForeignRelease, Origin},
    arguments::Arguments,
    error::{Context, Error, Result, failed},
    interrupt, process, setup, test, workspace_root,
};

/// Names the server's program to the tests.
pub(crate) const MYSQLD: &str = "PINION_MYSQLD";

/// What the packages with the server's program are called: the number of the release follows.
const PACKAGE: &str = "mysql-server-core-8";

/// Finds a MySQL 8 and runs `tests/tests/mysql_eight.rs` with it. Where there is none it says so and succeeds.
pub(crate) fn run(mut arguments: Arguments) -> Result<()> {
    interrupt::catch()?;
    let mysqld = match arguments.value::<PathBuf>("--mysqld")? {
        // Who names one wants no other.
        Some(given) => {
            let given = given.canonicalize().context(format!("--mysqld {}", given.display()))?;
            check(&given)?;
            given
        }
        None => match find() {
            Ok(found) => found,
            Err(Error::Failed(why)) => {
                println!("MySQL 8: SKIPPED: {}", one_line(&why));
                return Ok(());
            }
            Err(other) => return Err(other),
        },
    };
    println!("MySQL 8: {}", mysqld.display());
    apt::provide(setup::TEST)?;
    process::raise_file_limit()?;
    let mut cargo = test::cargo(&["test", "--locked", "--package", "pinion-tests", "--test", "mysql_eight"])?;
    test::run_cargo(cargo.args(arguments.rest()).env(MYSQLD, mysqld))
}

/// The system's own, else what apt fetches from the machine's sources or from Debian unstable.
fn find() -> Result<PathBuf> {
    if let Some(installed) = process::on_path("mysqld")
        && check(&installed).is_ok()
    {
        return Ok(installed);
    }
    if process::on_path("apt-get").is_none() {
        return failed("none is installed, and there is no apt-get to fetch one with");
    }
    let origin = if apt::knows(PACKAGE) { Origin::Own } else { Origin::Debian("unstable") };
    let directory = workspace_root()?.join("target/mysql8");
    let unpacked = ForeignRelease::unpack(origin, &[PACKAGE], &directory).and_then(|release| {
        let program = wrapper(&release, &directory)?;
        check(&program)?;
        Ok(program)
    });
    unpacked.map_err(|error| match error {
        Error::Failed(why) => Error::Failed(format!("none is installed, and from {origin} none came: {why}")),
        other => other,
    })
}

/// Errors unless the account that the tests' servers run under can run `program` and it is a MySQL 8.
fn check(program: &Path) -> Result<()> {
    let version = process::run(process::under(program, process::account("mysql")?).arg("--version"))?;
    if is_mysql_eight(&version) {
        return Ok(());
    }
    failed(format!("{} is no MySQL 8, but {}", program.display(), version.trim()))
}

/// MySQL's builds name themselves differently or not at all; MariaDB's always do.
fn is_mysql_eight(version: &str) -> bool {
    version.contains(" Ver 8.") && !version.contains("MariaDB")
}

/// A program that runs the unpacked server under its own loader and knows where its files are.
fn wrapper(release: &ForeignRelease, directory: &Path) -> Result<PathBuf> {
    let server = release.command("usr/sbin/mysqld")?;
    let words = std::iter::once(server.get_program()).chain(server.get_args());
    let words: Vec<String> = words.map(|word| quoted(&word.to_string_lossy())).collect();
    let usr = release.path("usr");
    let base = |option: &str, path: &str| quoted(&format!("--{option}={}", usr.join(path).display()));
    let options = [
        base("basedir", ""),
        base("lc-messages-dir", "share/mysql"),
        base("character-sets-dir", "share/mysql/charsets"),
        base("plugin-dir", "lib/mysql/plugin"),
    ];
    // `--no-defaults` counts only as the first option.
    let script = format!(
        "#!/bin/sh\nfirst=$1\nshift\nexec {} \"$first\" {} \"$@\"\n",
        words.join(" "),
        options.join(" ")
    );
    let program = directory.join("mysqld");
    fs::write(&program, script).context(format!("writing {}", program.display()))?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))
        .context(format!("making {} executable", program.display()))?;
    Ok(program)
}

fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// A program's complaint in one line: apt's last error if it is one, else all of it.
fn one_line(why: &str) -> String {
    let (before, complaint) = why.split_once(" ended with ").unwrap_or((why, ""));
    let errors: Vec<&str> = complaint.lines().filter_map(|line| line.strip_prefix("E: ")).collect();
    if errors.is_empty() {
        return why.split_whitespace().collect::<Vec<_>>().join(" ");
    }
    format!("{before}: {}", errors.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_mysql_of_release_eight_will_do() {
        for version in [
            "/usr/sbin/mysqld  Ver 8.4.3 for Linux on x86_64 (MySQL Community Server - GPL)",
            "mysqld  Ver 8.0.39-0ubuntu0.24.04.2 for Linux on x86_64 ((Ubuntu))",
        ] {
            assert!(is_mysql_eight(version), "{version}");
        }
        for version in [
            "mysqld  Ver 10.11.19-MariaDB-0+deb12u1 for debian-linux-gnu on x86_64 (Debian 12)",
            "mysqld  Ver 5.7.44 for Linux on x86_64 (MySQL Community Server (GPL))",
            "",
        ] {
            assert!(!is_mysql_eight(version), "{version}");
        }
    }

    #[test]
    fn why_it_is_skipped_takes_one_line() {
        let apt = "from there none came: apt-get ended with exit status: 100:\nHit:1 somewhere\n\
                   E: Release file is expired.\nE: Disabled.\n";
        assert_eq!(one_line(apt), "from there none came: apt-get: Release file is expired. Disabled.");
        assert_eq!(one_line("two\n lines"), "two lines");
    }

    #[test]
    fn a_quoted_word_is_one_word_to_the_shell() {
        let word = "it's a $HOME `and` \"more\"";
        let said = process::run(
            std::process::Command::new("sh").args(["-c", &format!("printf %s {}", quoted(word))]),
        );
        assert_eq!(said.unwrap(), word);
    }
}
