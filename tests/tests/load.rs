//! Five hundred clients on twenty server connections.
#![allow(clippy::unwrap_used)]

use pinion_tests::{Proxy, Server, foreign, long_run};

/// pgbench's own script and `-S`, each for 30 s with `PINION_LONG=1`, else 5 s.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_hundred_clients_share_twenty_connections_without_an_error() {
    let pg = Server::postgres().start().await;
    let mut superuser = pg.address();
    "postgres".clone_into(&mut superuser.user);
    foreign::pgbench(&superuser, &["-i", "-q", "-s", "5", "--no-vacuum"]).await;
    pg.direct().await.execute("GRANT ALL ON ALL TABLES IN SCHEMA public TO PUBLIC").await;
    let proxy =
        Proxy::in_front_of(&pg).max_connections(20).pool("connection_borrow_timeout = \"60s\"").start().await;
    let seconds = if long_run() { "30" } else { "5" };
    for arguments in [["-S", "-M", "simple"].as_slice(), &["-S", "-M", "prepared"], &["-M", "extended"]] {
        let address = proxy.address();
        let arguments = [&["-n", "-c", "500", "-j", "2", "-T", seconds], arguments].concat();
        let mut run = Box::pin(foreign::pgbench(&address, &arguments));
        let watcher = pg.direct().await;
        let mut most = 0;
        let report = loop {
            tokio::select! {
                report = &mut run => break report,
                now = watcher.scalar::<u32>("SELECT count(*) FROM pg_stat_activity WHERE usename = 'app'") => {
                    most = most.max(now);
                }
            }
        };
        assert!(report.contains("number of failed transactions: 0 "), "{report}");
        assert!(!report.contains("aborted"), "{report}");
        let tps = report.lines().find(|line| line.starts_with("tps")).unwrap_or_default();
        println!("{}: {tps}, {most} server connections at most", arguments.join(" "));
        assert!((1..=20).contains(&most), "{most} server connections");
    }
    assert_eq!(proxy.metric("pinion_pins_total", &[]).await, 0.0);
}
