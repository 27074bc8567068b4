//! `LISTEN` without a server connection of one's own: what is notified reaches every client that listens, as it would
//! directly, while none of them keeps a connection (row PIN-P-06).
#![allow(clippy::unwrap_used)]

use pinion_tests::{Message, Proxy, RawClient, Server, until, wire};

struct Bench {
    pg: Server,
    proxy: Proxy,
}

async fn bench(connections: u32) -> Bench {
    let pg = Server::postgres().start().await;
    let proxy = Proxy::in_front_of(&pg)
        .max_connections(connections)
        .pool("connection_borrow_timeout = \"300ms\"")
        .start()
        .await;
    Bench { pg, proxy }
}

impl Bench {
    async fn pins(&self) -> f64 {
        self.proxy.metric("pinion_pins_total", &[]).await
    }

    /// Server connections that hear something, by the server's own list.
    async fn listeners(&self) -> i64 {
        let direct = self.pg.direct().await;
        let listeners = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pinion_listener'";
        direct.scalar(listeners).await
    }
}

/// Channel and payload of a NotificationResponse.
fn notified(message: &Message) -> Option<(String, String)> {
    if message.tag != b'A' {
        return None;
    }
    let mut texts = message.body[4..].split(|byte| *byte == 0);
    let mut text = || String::from_utf8(texts.next().unwrap().to_vec()).unwrap();
    Some((text(), text()))
}

fn payloads(messages: &[Message]) -> Vec<String> {
    messages.iter().filter_map(notified).map(|(_, payload)| payload).collect()
}

fn tags(messages: &[Message]) -> String {
    messages.iter().map(|message| char::from(message.tag)).collect()
}

/// The payload of the next message, which is a notification.
async fn hears(client: &mut RawClient) -> String {
    let message = client.read().await.expect("a message");
    notified(&message).unwrap_or_else(|| panic!("{message:?}")).1
}

#[tokio::test]
async fn pin_p_06_many_listen_with_one_connection_and_nobody_is_pinned() {
    let bench = bench(1).await;
    let mut clients = Vec::new();
    for _ in 0..20 {
        let mut client = bench.proxy.raw().await;
        for text in ["LISTEN jobs", "LISTEN jobs", "UNLISTEN jobs; LISTEN jobs"] {
            let done = tags(&client.query(text).await).replace('C', "");
            assert_eq!(done, "Z", "{text}");
        }
        clients.push(client);
    }
    let sender = bench.proxy.connect().await;
    for round in 0..50 {
        sender.execute(&format!("NOTIFY jobs, '{round}'")).await;
    }
    for client in &mut clients {
        for round in 0..50 {
            assert_eq!(hears(client).await, round.to_string());
        }
    }
    assert_eq!(bench.pins().await, 0.0);
    assert_eq!(bench.listeners().await, 1);
    assert_eq!(
        bench.pg.direct().await.scalar::<i64>("SELECT count(*) FROM pg_listening_channels()").await,
        0
    );
}

/// `LISTEN` in either protocol, and each answer tells what was notified before it, as a server does.
#[tokio::test]
async fn an_answer_ends_after_what_was_notified_before_it() {
    let bench = bench(2).await;
    let mut a = bench.proxy.raw().await;
    let b = bench.proxy.connect().await;
    a.send_all(&[wire::parse("", "LISTEN ch"), wire::bind("", "", &[]), wire::execute("", 0), wire::sync()])
        .await;
    assert_eq!(tags(&a.read_reply().await), "12CZ");
    for round in 0..200 {
        // Its own before the end of the answer,
        let reply = a.query(&format!("NOTIFY ch, '{round}'")).await;
        assert_eq!((tags(&reply), payloads(&reply)), ("CAZ".to_owned(), vec![round.to_string()]));
        // and so another's that was committed before the question; or at once.
        b.execute(&format!("NOTIFY ch, '{round}'")).await;
        let reply = a.query("SELECT 1").await;
        assert_eq!(payloads(&reply), [round.to_string()], "{}", tags(&reply));
    }
    assert_eq!(bench.pins().await, 0.0);
}

#[tokio::test]
async fn nothing_is_told_in_a_transaction() {
    let bench = bench(2).await;
    let mut a = bench.proxy.raw().await;
    let b = bench.proxy.connect().await;
    a.query("LISTEN ch").await;
    for begun in [&["BEGIN"][..], &["BEGIN", "SELECT 1"], &["BEGIN", "SELECT nothing"]] {
        for text in begun {
            assert!(payloads(&a.query(text).await).is_empty());
        }
        b.execute("NOTIFY ch, 'now'").await;
        let in_transaction = a.query("SELECT 2").await;
        assert!(payloads(&in_transaction).is_empty(), "{begun:?}");
        let ended = a.query("ROLLBACK").await;
        assert_eq!((tags(&ended), payloads(&ended)), ("CAZ".to_owned(), vec!["now".to_owned()]), "{begun:?}");
    }
}

/// What a transaction does to the channels counts when it is committed.
#[tokio::test]
async fn unlisten_counts_when_it_is_committed() {
    let bench = bench(2).await;
    let b = bench.proxy.connect().await;
    let cases: &[(&[&str], bool)] = &[
        (&["UNLISTEN ch"], false),
        (&["UNLISTEN other"], true),
        (&["UNLISTEN *"], false),
        (&["DISCARD ALL"], false),
        (&["UNLISTEN ch; LISTEN ch"], true),
        (&["LISTEN ch; UNLISTEN ch"], false),
        (&["UNLISTEN ch; SELECT nothing"], true),
        (&["SELECT pg_advisory_unlock_all(); CLOSE ALL; UNLISTEN *; RESET ALL;"], false),
        (&["BEGIN", "UNLISTEN ch", "COMMIT"], false),
        (&["BEGIN", "UNLISTEN ch", "ROLLBACK"], true),
        (&["BEGIN", "SAVEPOINT s", "UNLISTEN ch", "ROLLBACK TO s", "COMMIT"], true),
        (&["BEGIN", "UNLISTEN ch", "SELECT nothing", "COMMIT"], true),
        (&["BEGIN", "LISTEN other", "ROLLBACK"], true),
    ];
    for (texts, still) in cases {
        let mut a = bench.proxy.raw().await;
        a.query("LISTEN ch").await;
        for text in *texts {
            a.query(text).await;
        }
        b.execute("NOTIFY ch, 'x'").await;
        let told = payloads(&a.query("SELECT 1").await);
        assert_eq!(!told.is_empty(), *still, "{texts:?}");
    }
}

/// A transaction that listens keeps its connection, as before, and hears each notification once.
#[tokio::test]
async fn a_listen_in_a_transaction_counts_when_it_is_committed() {
    let bench = bench(2).await;
    let b = bench.proxy.connect().await;
    let mut a = bench.proxy.raw().await;
    a.query("LISTEN one").await;
    for text in ["BEGIN", "LISTEN one", "LISTEN two", "COMMIT"] {
        a.query(text).await;
    }
    for channel in ["one", "two"] {
        b.execute(&format!("NOTIFY {channel}, '{channel}'")).await;
        // The server tells the one, the listener the other.
        let mut told = Vec::new();
        until("it is told", async || {
            told.extend(payloads(&a.query("SELECT 1").await));
            !told.is_empty()
        })
        .await;
        told.extend(payloads(&a.query("SELECT 1").await));
        assert_eq!(told, [channel]);
    }
}

#[tokio::test]
async fn listeners_are_told_apart() {
    let bench = bench(2).await;
    let (mut a, mut b) = (bench.proxy.raw().await, bench.proxy.raw().await);
    let quoted = "\"Say \"\"hi\"\"; ö\"";
    assert_eq!(tags(&a.query(&format!("LISTEN {quoted}")).await), "CZ");
    b.query("LISTEN b").await;
    let sender = bench.proxy.connect().await;
    sender.execute(&format!("NOTIFY {quoted}, 'für a'; NOTIFY b, 'for b'; NOTIFY c, 'for nobody'")).await;
    assert_eq!(hears(&mut a).await, "für a");
    assert_eq!(hears(&mut b).await, "for b");
    // A name that the server cuts.
    let long = "x".repeat(70);
    a.query(&format!("LISTEN {long}")).await;
    sender.execute(&format!("NOTIFY {}, 'cut'", &long[..63])).await;
    until("it is told", async || payloads(&a.query("SELECT 1").await) == ["cut"]).await;
    assert!(payloads(&b.query("SELECT 1").await).is_empty());
}

/// The server's own answers and errors; the connection that was asked is another's afterwards, and hears nothing.
#[tokio::test]
async fn what_a_session_hears_it_can_ask() {
    let bench = bench(1).await;
    let (mut a, mut b) = (bench.proxy.raw().await, bench.proxy.raw().await);
    let channels = "SELECT string_agg(c, ',' ORDER BY c) FROM pg_listening_channels() AS t(c)";
    a.query("LISTEN one").await;
    a.query("LISTEN two").await;
    assert_eq!(a.scalar(channels).await, "one,two");
    assert_eq!(b.scalar("SELECT count(*) FROM pg_listening_channels()").await, "0");
    b.query("NOTIFY one, 'once'").await;
    assert_eq!(hears(&mut a).await, "once");
    assert!(payloads(&a.query("SELECT 1").await).is_empty());
    a.query("UNLISTEN one").await;
    assert_eq!(a.scalar(channels).await, "two");
    assert_eq!(bench.pins().await, 0.0);
}

/// Who listens cannot know what it has missed; it is told as the server's own clients are.
#[tokio::test]
async fn a_lost_listener_ends_its_clients() {
    let bench = bench(2).await;
    let (mut idle, mut busy) = (bench.proxy.raw().await, bench.proxy.raw().await);
    let other = bench.proxy.connect().await;
    idle.query("LISTEN ch").await;
    busy.query("LISTEN ch").await;
    busy.query("BEGIN").await;
    busy.query("SELECT 1").await;
    let kill =
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'pinion_listener'";
    bench.pg.direct().await.execute(kill).await;
    let error = idle.expect_error().await;
    assert_eq!((&*error.severity, &*error.code), ("FATAL", "08006"));
    idle.expect_closed().await;
    // Its transaction is carried out first.
    assert_eq!(busy.scalar("SELECT 2").await, "2");
    busy.send_bytes(&wire::query("COMMIT")).await;
    assert_eq!(busy.expect_error().await.code, "08006");
    busy.expect_closed().await;
    assert_eq!(other.scalar::<i32>("SELECT 1").await, 1);
    let mut again = bench.proxy.raw().await;
    again.query("LISTEN ch").await;
    other.execute("NOTIFY ch, 'again'").await;
    assert_eq!(hears(&mut again).await, "again");
}

/// Row `NotificationsLost`.
#[tokio::test]
async fn a_client_that_does_not_read_is_given_up_and_nobody_else() {
    let bench = bench(2).await;
    let (mut deaf, mut reads) = (bench.proxy.raw().await, bench.proxy.raw().await);
    deaf.query("LISTEN ch").await;
    reads.query("LISTEN ch").await;
    let sender = bench.proxy.connect().await;
    // More than sockets take.
    for round in 0..40 {
        let notify = format!(
            "SELECT pg_notify('ch', repeat('x', 7000) || {round} * 100 + n) FROM generate_series(1, 100) n"
        );
        sender.execute(&notify).await;
        for n in 1..=100 {
            assert_eq!(hears(&mut reads).await[7000..], (round * 100 + n).to_string());
        }
    }
    // It is told so once it reads.
    let last_words = deaf.expect_closed().await;
    let error = last_words.iter().find(|message| message.tag == b'E').expect("a last word").error();
    assert_eq!((&*error.severity, &*error.code), ("FATAL", "53000"));
    assert_eq!(error.message, "More notifications came than this client has read.");
}

/// A client that reads another encoding keeps its connection, where the server writes that; who changes to one is not told
/// what it could not read.
#[tokio::test]
async fn notifications_are_in_the_clients_encoding() {
    let bench = bench(2).await;
    let sender = bench.proxy.connect().await;
    let mut latin = bench.proxy.raw().await;
    latin.query("SET client_encoding = 'LATIN1'").await;
    latin.query("LISTEN ch").await;
    sender.execute("NOTIFY ch, 'ö'").await;
    let mut told = Vec::new();
    until("it is told", async || {
        told.extend(latin.query("SELECT 1").await.into_iter().filter(|message| message.tag == b'A'));
        !told.is_empty()
    })
    .await;
    assert_eq!(told[0].body[4..], *b"ch\0\xf6\0");
    assert_eq!(bench.proxy.metric("pinion_pins_total", &[("reason", "listen")]).await, 1.0);

    let mut changes = bench.proxy.raw().await;
    changes.query("LISTEN ch").await;
    changes.query("SET client_encoding = 'LATIN1'").await;
    sender.execute("NOTIFY ch, 'o'").await;
    assert_eq!(payloads(&changes.query("SELECT 1").await), ["o"]);
    sender.execute("NOTIFY ch, 'ö'").await;
    let error = changes.expect_error().await;
    assert_eq!((&*error.severity, &*error.code), ("FATAL", "53000"));
}

/// The listener's connection goes when nobody listens.
#[tokio::test]
async fn a_listener_without_clients_is_closed() {
    let bench = bench(2).await;
    let mut a = bench.proxy.raw().await;
    a.query("LISTEN ch").await;
    assert_eq!(bench.listeners().await, 1);
    drop(a);
    let mut b = bench.proxy.raw().await;
    b.query("LISTEN ch").await;
    b.query("UNLISTEN ch").await;
    until("it is closed", async || bench.listeners().await == 0).await;
    b.query("LISTEN ch").await;
    bench.proxy.connect().await.execute("NOTIFY ch, 'x'").await;
    assert_eq!(hears(&mut b).await, "x");
}
