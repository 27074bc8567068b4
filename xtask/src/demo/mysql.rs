//! The demonstration's MySQL half: the same steps as with PostgreSQL.

use std::{path::Path, process::Command};

use super::{CLIENTS, MYSQL, SERVER_LIMIT, Shown, USER, pin, pins};
pub(super) use crate::sysbench::Server;
use crate::{
    bench::mysql::Watch,
    error::{Context, Result},
    mariadb::MariaDb,
    pinion::Pinion,
    process,
    sampler::Seen,
    sysbench::Load,
    temporary,
};

/// A private MariaDB with this certificate. It is its own authority, for clients too: sysbench shows it.
pub(super) fn start_server(directory: &Path, certificate: &Path, key: &Path) -> Result<MariaDb> {
    let copy = key.with_file_name("mariadb.key");
    let text = std::fs::read_to_string(key).context("reading the key that was just made")?;
    temporary::private_file(&copy, &text, process::account("mysql")?)?;
    MariaDb::start(
        directory,
        &[
            format!("--max-connections={SERVER_LIMIT}"),
            format!("--ssl-cert={}", certificate.display()),
            format!("--ssl-ca={}", certificate.display()),
            format!("--ssl-key={}", copy.display()),
        ],
    )
}

/// Many clients over few server connections, the latency that Pinion adds, and a pin.
pub(super) fn show(
    mariadb: &MariaDb,
    pinion: &Pinion,
    direct: &Server<'_>,
    through: &Server<'_>,
    directory: &Path,
) -> Result<Shown> {
    println!("Filling sysbench's tables through Pinion.");
    through.fill(directory)?;
    let load = |clients, seconds| Load { script: "oltp_point_select", prepared: false, clients, seconds };
    let pins_before = pins(pinion, MYSQL)?;

    println!("Running {CLIENTS} clients for 5 s through Pinion, then 5 s straight to MariaDB.");
    let watch = Watch::of(mariadb.root()?, USER);
    let crowd = through.run(load(CLIENTS, 5), directory)?;
    let peak = watch.finish()?;
    let pins_by_load = pins(pinion, MYSQL)? - pins_before;
    let watch = Watch::of(mariadb.root()?, USER);
    let crowd_direct = direct.run(load(CLIENTS, 5), directory)?;
    // Pinion's own connections stay open meanwhile; they are not the direct clients'.
    let direct_peak = watch.finish()?.saturating_sub(peak);

    println!("Running 1 client for 3 s both ways, for the latency that Pinion adds.");
    let alone = through.run(load(1, 3), directory)?;
    let alone_direct = direct.run(load(1, 3), directory)?;
    let mut client = Command::new("mariadb");
    client
        .args(["--no-defaults", "--protocol=TCP", "--host=127.0.0.1", "--ssl", "--skip-column-names"])
        .args([format!("--port={}", through.port), format!("--user={USER}"), format!("--database={USER}")])
        .env("MYSQL_PWD", through.password)
        .arg("--execute")
        .arg("CREATE TEMPORARY TABLE basket AS SELECT seq FROM seq_1_to_7; SELECT count(*) FROM basket; DROP TABLE basket");
    let pin_example = pin(pinion, MYSQL, &mut client)?;
    // The account has to use TLS, so each connection has it.
    let seen = |peak| Seen { peak, peak_tls: peak };
    Ok(Shown {
        crowd,
        crowd_seen: seen(peak),
        crowd_direct,
        crowd_direct_seen: seen(direct_peak),
        alone,
        alone_direct,
        pins_by_load,
        pin_example,
    })
}
