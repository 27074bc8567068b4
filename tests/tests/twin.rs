//! Scripts of statements that change and read a session's state, straight to a server and through Pinion, whose clients
//! change connections all the time. A short run with a fixed seed; `cargo xtask twin` runs longer ones.
#![allow(clippy::unwrap_used)]

use std::{env, time::Duration};

use pinion_tests::{
    Proxy, ProxyBuilder, Server,
    twin::{self, Engine, Options, Ways},
};

/// What `cargo xtask twin` says, as text.
fn said(variable: &str) -> String {
    env::var(variable).unwrap_or_default()
}

fn number(variable: &str, otherwise: u64) -> u64 {
    env::var(variable).map_or(otherwise, |value| value.parse().unwrap())
}

fn names(variable: &str) -> Vec<String> {
    said(variable).split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

async fn twins<E: Engine>(proxy: ProxyBuilder, direct: pinion_tests::Address, behind: pinion_tests::Address) {
    let proxy = proxy.max_connections(twin::CONNECTIONS).start().await;
    let ways = Ways { direct, behind, through: proxy.address() };
    let must_differ = env::var_os("PINION_TWIN_MUST_DIFFER").is_some();
    let options = Options {
        seed: number("PINION_TWIN_SEED", 1),
        lasts: Duration::from_secs(number("PINION_TWIN_SECONDS", 25)),
        faults: said("PINION_TWIN_FAULTS").parse().unwrap(),
        only: names("PINION_TWIN_ONLY"),
        with: names("PINION_TWIN_WITH"),
        shrinks: Duration::from_secs(if must_differ { 0 } else { 90 }),
    };
    match twin::twin::<E>(&ways, &options).await {
        Ok(tally) if !must_differ => {
            println!("{tally}");
            let resting = if options.faults.kill { E::RESTING } else { &[] };
            let (production, moved) = tally.least_moved(resting);
            let least = number("PINION_TWIN_LEAST", 0);
            assert!(moved >= least, "{production} changed hands {moved} times only, not {least}");
        }
        Ok(tally) => panic!("no difference, and there should be one:\n{tally}"),
        Err(difference) if must_differ => println!("{difference}"),
        Err(difference) => panic!("{difference}"),
    }
}

#[tokio::test]
async fn mariadb() {
    let start = async || Server::mariadb().without_general_log().start().await;
    let (alone, behind) = (start().await, start().await);
    twins::<twin::mysql::MariaDb>(Proxy::in_front_of(&behind), alone.address(), behind.address()).await;
}

#[tokio::test]
async fn postgresql() {
    let start = async || {
        let server = Server::postgres().start().await;
        server.direct().await.execute("GRANT app2 TO app").await;
        server
    };
    let (alone, behind) = (start().await, start().await);
    twins::<twin::postgres::Postgres>(Proxy::in_front_of(&behind), alone.address(), behind.address()).await;
}
