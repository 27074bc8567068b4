//! A private MySQL 8, where there is one: what [`MariaDb`](crate::MariaDb) does not know of it.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    sync::OnceLock,
};

use crate::{
    MariaDbBuilder, Server,
    mariadb::{Make, databases, mysql},
    running::{run, template, under},
};

/// The users of the tests, who all have the method `caching_sha2_password`.
///
/// | user | password | may |
/// |---|---|---|
/// | `app` | `app-password` | everything in the databases, FILE, RELOAD |
/// | `app2` | `app2-password` | likewise, and end connections of others |
/// | `monitor` | `monitor-password` | nothing |
/// | `root` | none, from 127.0.0.1 | everything |
///
/// A server runs this at every start, and then knows grants, which it does not while it makes its data directory. A
/// statement ends with its line. Source: MySQL reference manual, "Server Command Options", `--init-file`.
const CONTENTS: &str = "\
CREATE USER IF NOT EXISTS root@'127.0.0.1' IDENTIFIED BY '';
GRANT ALL ON *.* TO root@'127.0.0.1' WITH GRANT OPTION;
CREATE USER IF NOT EXISTS app@'%' IDENTIFIED WITH caching_sha2_password BY 'app-password';
CREATE USER IF NOT EXISTS app2@'%' IDENTIFIED WITH caching_sha2_password BY 'app2-password';
CREATE USER IF NOT EXISTS monitor@'%' IDENTIFIED WITH caching_sha2_password BY 'monitor-password';
GRANT FILE, RELOAD ON *.* TO app@'%', app2@'%';
GRANT CONNECTION_ADMIN ON *.* TO app2@'%';
";

/// Settings that the template's files are made with and opened with. Releases before 8.0.30 know no `redo-log-capacity`.
/// What Debian's build takes for the last one is a directory that only its installation makes.
const FILES: &[&str] = &["--no-defaults", "--loose-innodb-redo-log-capacity=8M", "--secure-file-priv="];

/// Settings of every MySQL 8. Certificates and the key for RSA it makes itself.
const EIGHT_SETTINGS: &[&str] = &["--mysqlx=0", "--skip-log-bin"];

impl Server {
    /// The MySQL 8 whose `mysqld` the environment variable `PINION_MYSQLD` names. Where there is none this says so, past
    /// the capture of test output, and there is nothing to test.
    #[must_use]
    pub fn mysql_eight() -> Option<MariaDbBuilder> {
        let Some(program) = std::env::var_os("PINION_MYSQLD").map(PathBuf::from) else {
            let mut stderr = std::io::stderr();
            stderr.write_all(b"SKIPPED: no MySQL 8 server; see cargo xtask mysql8\n").unwrap();
            return None;
        };
        Some(MariaDbBuilder::new(Make {
            name: "mysql-eight",
            template: eight_template(&program).to_owned(),
            program,
            settings: &[FILES, EIGHT_SETTINGS],
            in_directory: |directory| {
                let statements = directory.join("init.sql");
                fs::write(&statements, [CONTENTS, &databases("")].concat()).unwrap();
                // It takes no empty name for its socket file. No client of the tests looks for it there.
                vec![
                    format!("--init-file={}", statements.display()),
                    format!("--socket={}", directory.join("socket").display()),
                ]
            },
        }))
    }
}

/// A data directory without users but `root`, made once and kept for later runs.
fn eight_template(program: &Path) -> &'static Path {
    static TEMPLATE: OnceLock<PathBuf> = OnceLock::new();
    TEMPLATE.get_or_init(|| {
        let output = under(mysql(), program).arg("--version").output();
        let output = output.unwrap_or_else(|e| panic!("PINION_MYSQLD={}: {e}", program.display()));
        let version = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(version.contains(" Ver 8.") && !version.contains("MariaDB"), "not a MySQL 8: {version}");
        template(mysql(), &(FILES, version), |data| {
            let mut initialize = under(mysql(), program);
            initialize.args(FILES).arg("--initialize-insecure").arg(format!("--datadir={}", data.display()));
            run(&mut initialize);
        })
    })
}
