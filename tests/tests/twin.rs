//! Scripts of statements that change and read a session's state, straight to a server and through Pinion, whose clients
//! change connections all the time. A short run with a fixed seed; `cargo xtask twin` runs longer ones.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use pinion_tests::{
    Proxy, Server,
    twin::{self, Ways},
};

fn number(variable: &str, otherwise: u64) -> u64 {
    std::env::var(variable).map_or(otherwise, |value| value.parse().unwrap())
}

fn seed() -> u64 {
    number("PINION_TWIN_SEED", 1)
}

fn lasts() -> Duration {
    Duration::from_secs(number("PINION_TWIN_SECONDS", 20))
}

#[tokio::test]
async fn mariadb() {
    let start = async || Server::mariadb().without_general_log().start().await;
    let (alone, behind) = (start().await, start().await);
    let proxy = Proxy::in_front_of(&behind).max_connections(twin::CONNECTIONS).start().await;
    let ways = Ways { direct: alone.address(), behind: behind.address(), through: proxy.address() };
    match twin::twin::<twin::mysql::MariaDb>(&ways, seed(), lasts()).await {
        Ok(tally) => println!("{tally}"),
        Err(difference) => panic!("{difference}"),
    }
}
