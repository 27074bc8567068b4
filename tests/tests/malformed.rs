//! Malformed and truncated messages from either side: a clean error or a close, no panic, no leaked connection.
#![allow(clippy::unwrap_used)]

use pinion_tests::{Answer, Proxy, RawClient, RawServer, Server, until, wire};

/// Messages tried from each side.
const CASES: u32 = 200;

/// A small generator with a fixed seed, so that a failure can be seen again (SplitMix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() % n as u64).unwrap()
    }
    fn bytes(&mut self, n: usize) -> Vec<u8> {
        (0..n).map(|_| self.next().to_le_bytes()[0]).collect()
    }
}

/// One of `sound`, spoilt: cut short, a wrong length, flipped bytes, a wrong tag, no terminator, or pure noise.
fn spoil(random: &mut Random, sound: &[Vec<u8>]) -> Vec<u8> {
    let mut message = sound[random.below(sound.len())].clone();
    match random.below(8) {
        0 => message.truncate(random.below(message.len()).max(1)),
        1 => message[1..5].copy_from_slice(&i32::MAX.to_be_bytes()),
        2 => message[1..5].copy_from_slice(&(-1_i32).to_be_bytes()),
        3 => message[1..5].copy_from_slice(&u32::try_from(random.below(4)).unwrap().to_be_bytes()),
        4 => message[0] = random.bytes(1)[0],
        5 => {
            for _ in 0..3 {
                let at = random.below(message.len());
                message[at] ^= 1 << random.below(8);
            }
        }
        6 => {
            let body = message[5..].iter().filter(|b| **b != 0).copied().collect::<Vec<_>>();
            message = wire::message(message[0], &body);
        }
        _ => {
            let length = 1 + random.below(64);
            message = random.bytes(length);
        }
    }
    message
}

fn client_messages() -> Vec<Vec<u8>> {
    vec![
        wire::query("SELECT 1"),
        wire::parse("s", "SELECT $1::int"),
        wire::bind("p", "s", &["1"]),
        wire::describe_statement("s"),
        wire::describe_portal("p"),
        wire::execute("p", 0),
        wire::close_statement("s"),
        wire::close_portal("p"),
        wire::sync(),
        wire::flush(),
        wire::copy_data(b"1\tx\n"),
        wire::copy_done(),
        wire::copy_fail("why"),
        wire::function_call(177, &["1", "2"]),
        wire::message(b'p', b"a password nobody asked for\0"),
    ]
}

fn server_messages() -> Vec<Vec<u8>> {
    let row = [1_u16.to_be_bytes().as_slice(), &1_i32.to_be_bytes(), b"7"].concat();
    let columns =
        [1_u16.to_be_bytes().as_slice(), b"n\0", &[0; 6], &23_u32.to_be_bytes(), &[0, 4, 0, 0, 0, 0, 0, 0]];
    vec![
        wire::message(b'T', &columns.concat()),
        wire::message(b'D', &row),
        wire::message(b'C', b"SELECT 1\0"),
        wire::message(b'Z', b"I"),
        wire::message(b'Z', b"?"),
        wire::message(b'Z', b""),
        wire::message(b'E', b"SERROR\0VERROR\0C42601\0Mbad\0\0"),
        wire::message(b'N', b"SNOTICE\0VNOTICE\0C00000\0Mhm\0\0"),
        wire::message(b'S', b"TimeZone\0UTC\0"),
        wire::message(b'A', &[7_i32.to_be_bytes().as_slice(), b"ch\0payload\0"].concat()),
        wire::message(b'G', &[0, 0, 1, 0, 0]),
        wire::message(b'H', &[0, 0, 1, 0, 0]),
        wire::message(b'W', &[0, 0, 0]),
        wire::message(b'1', b""),
        wire::message(b'2', b""),
        wire::message(b'3', b""),
        wire::message(b't', &[0, 1, 0, 0, 0, 23]),
        wire::message(b'R', &0_i32.to_be_bytes()),
        wire::message(b'K', &[0; 8]),
        wire::message(b'V', &(-1_i32).to_be_bytes()),
    ]
}

/// After everything: no client or server connection is left that nobody uses, and the proxy serves.
async fn all_is_well(pg: &Server, proxy: &Proxy, budget: u32) {
    until("no client is left", async || proxy.metric("pinion_client_connections", &[]).await == 0.0).await;
    until("nothing is borrowed", async || {
        proxy.metric("pinion_database_connections_currently_borrowed", &[]).await == 0.0
    })
    .await;
    until("server connections are within the budget", async || pg.backends().await <= budget).await;
    let client = proxy.connect().await;
    assert_eq!(client.scalar::<i32>("SELECT 42").await, 42);
    let left = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'app' AND state <> 'idle'";
    assert_eq!(pg.direct().await.scalar::<i32>(left).await, 0);
    assert!(!proxy.log().contains("panicked at"));
}

#[tokio::test]
async fn malformed_messages_from_clients() {
    let pg = Server::postgres().start().await;
    let proxy = Proxy::in_front_of(&pg).max_connections(2).start().await;
    let mut random = Random(20_260);
    let sound = client_messages();
    let (mut errors, mut closes) = (0, 0);
    for case in 0..CASES {
        let mut client = proxy.raw().await;
        if case % 3 == 0 {
            client.query("BEGIN").await;
        }
        if case % 5 == 0 {
            client.send_all(&[wire::parse("s", "SELECT $1::int"), wire::flush()]).await;
            assert_eq!(client.read().await.unwrap().tag, b'1');
        }
        client.send_bytes(&spoil(&mut random, &sound)).await;
        // A Sync, in case the message was sound enough to wait for one; then the client is gone.
        client.send_bytes(&wire::sync()).await;
        client.send_bytes(&wire::terminate()).await;
        client.finish_sending().await;
        let last_words = client.expect_closed().await;
        match last_words.iter().any(|m| m.tag == b'E') {
            true => errors += 1,
            false => closes += 1,
        }
    }
    println!(
        "{CASES} malformed client messages: {errors} answered with an error, {closes} by a close or not at all"
    );
    assert!(errors > 0);
    all_is_well(&pg, &proxy, 2).await;
}

#[tokio::test]
async fn malformed_start_ups() {
    let pg = Server::postgres().start().await;
    let proxy = Proxy::in_front_of(&pg)
        .max_connections(2)
        .proxy_setting("failed_logins_per_minute = 0")
        .start()
        .await;
    let mut random = Random(1886);
    let sound = wire::startup(3, 0, &[("user", "app"), ("database", "appdb"), ("options", "-c geqo=off")]);
    for _ in 0..CASES {
        let mut message = match random.below(4) {
            0 => wire::cancel_request(7, b"secret"),
            1 => wire::ssl_request(),
            _ => sound.clone(),
        };
        match random.below(4) {
            0 => message.truncate(random.below(message.len())),
            1 => {
                let length = i32::try_from(random.below(20_000)).unwrap() - 10_000;
                message[..4].copy_from_slice(&length.to_be_bytes());
            }
            2 => {
                let at = random.below(message.len());
                message[at] ^= 1 << random.below(8);
            }
            _ => message = random.bytes(40),
        }
        let mut client = RawClient::open(&proxy.address()).await;
        client.send_bytes(&message).await;
        // What passes for a start-up gets this as its SASL answer.
        client
            .send_bytes(&spoil(&mut random, &[wire::message(b'p', b"SCRAM-SHA-256\0\0\0\0\x05n,,n=")]))
            .await;
        client.finish_sending().await;
        while client.read_byte().await.is_some() {}
    }
    all_is_well(&pg, &proxy, 2).await;
}

#[tokio::test]
async fn malformed_messages_from_the_server() {
    let pg = Server::postgres().start().await;
    let sound = server_messages();
    // The query names its case, so that the answer can be made where it is asked for.
    let raw = RawServer::in_front_of(&pg, move |body| {
        let text = String::from_utf8_lossy(body);
        let (_, after) = text.split_once("MALFORMED ")?;
        let case: u64 = after.split_whitespace().next()?.parse().ok()?;
        let mut random = Random(case);
        let mut bytes = Vec::new();
        for _ in 0..random.below(3) {
            bytes.extend(sound[random.below(sound.len())].clone());
        }
        bytes.extend(spoil(&mut random, &sound));
        Some(Answer::BytesThenClose(bytes))
    })
    .await;
    let builder = Proxy::in_front_of(&pg).max_connections(2).target_port(raw.port());
    let proxy = builder.pool("connection_borrow_timeout = \"10s\"").start().await;
    let mut told = 0;
    for case in 0..CASES {
        let mut client = proxy.raw().await;
        let query = format!("SELECT 1 /* MALFORMED {case} */ ");
        match case % 2 {
            0 => client.send_bytes(&wire::query(&query)).await,
            _ => {
                let request =
                    [wire::parse("", &query), wire::bind("", "", &[]), wire::execute("", 0), wire::sync()];
                client.send_all(&request).await;
            }
        }
        // It is told something or its connection ends; it never hangs.
        loop {
            match client.read_or_cut().await {
                Some(message) if message.tag == b'E' => told += 1,
                Some(message) if message.tag == b'Z' => break,
                Some(_) => {}
                None => break,
            }
        }
    }
    println!("{CASES} malformed server messages: {told} clients were told");
    assert!(told > CASES / 4, "only {told} were told");
    all_is_well(&pg, &proxy, 2).await;
}

/// A server that stops in the middle of a row: the client's stream is cut there, not patched up.
#[tokio::test]
async fn a_row_cut_in_the_middle_ends_the_client_connection() {
    let pg = Server::postgres().start().await;
    let raw = RawServer::in_front_of(&pg, |body| {
        let row = wire::message(b'D', &[b"\0\x01\0\0\x27\x10".as_slice(), &[b'x'; 5000]].concat());
        let mut bytes = row;
        bytes[1..5].copy_from_slice(&10_010_u32.to_be_bytes()); // it promises 10,000 bytes of value
        String::from_utf8_lossy(body).contains("CUT").then_some(Answer::BytesThenClose(bytes))
    })
    .await;
    let proxy = Proxy::in_front_of(&pg).max_connections(2).target_port(raw.port()).start().await;
    let mut client = proxy.raw().await;
    client.send_bytes(&wire::query("SELECT 'CUT'")).await;
    while client.read_or_cut().await.is_some() {}
    drop(client);
    all_is_well(&pg, &proxy, 2).await;
}

/// A server that never answers keeps its client waiting, and nobody else.
#[tokio::test]
async fn a_silent_server_connection_is_closed_with_its_client() {
    let pg = Server::postgres().start().await;
    let raw = RawServer::in_front_of(&pg, |body| {
        String::from_utf8_lossy(body).contains("SILENCE").then_some(Answer::Silence)
    })
    .await;
    let proxy = Proxy::in_front_of(&pg).max_connections(1).target_port(raw.port()).start().await;
    let mut client = proxy.raw().await;
    client.send_bytes(&wire::query("SELECT 'SILENCE'")).await;
    until("it is lent", async || {
        proxy.metric("pinion_database_connections_currently_borrowed", &[]).await == 1.0
    })
    .await;
    drop(client);
    all_is_well(&pg, &proxy, 1).await;
}
