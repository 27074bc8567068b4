//! PostgreSQL's protocol, message by message, as a connection of one's own would speak it.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use pinion_tests::{Address, Proxy, RawClient, Server, wire};
use tokio_postgres::AsyncMessage;

async fn pool_of(n: u32) -> (Server, Proxy) {
    let pg = Server::postgres().start().await;
    let proxy = Proxy::in_front_of(&pg).max_connections(n).start().await;
    (pg, proxy)
}

async fn tls_proxy() -> (Server, Proxy) {
    let pg = Server::postgres().start().await;
    let proxy = Proxy::in_front_of(&pg).max_connections(3).tls().start().await;
    (pg, proxy)
}

fn tags(reply: &[pinion_tests::Message]) -> String {
    reply.iter().map(|m| char::from(m.tag)).collect()
}

// ---- start-up

#[tokio::test]
async fn startup_parameters_reach_the_server_and_are_reported_back() {
    let (_pg, proxy) = pool_of(2).await;
    let parameters = [
        ("application_name", "named"),
        ("TimeZone", "Asia/Tokyo"),
        ("DateStyle", "German"),
        ("client_encoding", "LATIN1"),
        ("extra_float_digits", "2"),
        ("search_path", "other, public"),
        ("statement_timeout", "12345"),
        ("app.anything", "goes"),
    ];
    let mut a = RawClient::connect_with(&proxy.address(), &parameters).await;
    for (name, wanted) in [
        ("application_name", "named"),
        ("TimeZone", "Asia/Tokyo"),
        ("DateStyle", "German, DMY"),
        ("client_encoding", "LATIN1"),
        ("extra_float_digits", "2"),
        ("search_path", "other, public"),
        ("statement_timeout", "12345ms"),
        ("app.anything", "goes"),
    ] {
        assert_eq!(a.scalar(&format!("SHOW {name}")).await, wanted, "{name}");
    }
    assert_eq!(a.parameters["TimeZone"], "Asia/Tokyo");
    assert_eq!(a.parameters["application_name"], "named");
    assert_eq!(a.parameters["server_version"].split('.').next().unwrap(), "15");
    for reported in ["server_encoding", "integer_datetimes", "standard_conforming_strings", "is_superuser"] {
        assert!(a.parameters.contains_key(reported), "{reported}");
    }
    assert_eq!(proxy.metric("pinion_pins_total", &[]).await, 0.0);
}

#[tokio::test]
async fn startup_parameters_of_one_client_are_not_anothers() {
    let (_pg, proxy) = pool_of(1).await;
    let mut a =
        RawClient::connect_with(&proxy.address(), &[("search_path", "other"), ("TimeZone", "Asia/Tokyo")])
            .await;
    let mut b = proxy.raw().await;
    for _ in 0..3 {
        assert_eq!(a.scalar("SHOW search_path").await, "other");
        assert_eq!(b.scalar("SHOW search_path").await, "\"$user\", public");
        assert_eq!(b.scalar("SHOW TimeZone").await, "UTC");
        assert_eq!(a.scalar("SHOW TimeZone").await, "Asia/Tokyo");
    }
}

#[tokio::test]
async fn command_line_options_reach_the_server() {
    let (_pg, proxy) = pool_of(2).await;
    let options = "-c statement_timeout=4321 -c search_path=other,\\ public --work-mem=2MB -cgeqo=off";
    let mut a = RawClient::connect_with(&proxy.address(), &[("options", options)]).await;
    assert_eq!(a.scalar("SHOW statement_timeout").await, "4321ms");
    assert_eq!(a.scalar("SHOW search_path").await, "other, public");
    assert_eq!(a.scalar("SHOW work_mem").await, "2MB");
    assert_eq!(a.scalar("SHOW geqo").await, "off");
}

#[tokio::test]
async fn a_wrong_startup_parameter_is_refused_in_the_servers_words() {
    let (_pg, proxy) = pool_of(2).await;
    let mut a = RawClient::open(&proxy.address()).await;
    let refused = async |a: &mut RawClient, parameter| match a.login(&proxy.address(), &[parameter]).await {
        Err(error) => error,
        Ok(()) => {
            a.send_bytes(&wire::query("SELECT 1")).await;
            a.expect_error().await
        }
    };
    assert_eq!(refused(&mut a, ("no_such_setting", "1")).await.code, "42704");
    let mut b = RawClient::open(&proxy.address()).await;
    assert_eq!(refused(&mut b, ("work_mem", "much")).await.code, "22023");
}

#[tokio::test]
async fn the_database_defaults_to_the_user_name() {
    let (pg, proxy) = pool_of(2).await;
    pg.direct().await.execute("CREATE DATABASE app").await;
    let mut a = RawClient::open(&proxy.address()).await;
    a.send_bytes(&wire::startup(3, 0, &[("user", "app")])).await;
    a.authenticate("app", "app-password").await.unwrap();
    assert_eq!(a.scalar("SELECT current_database()").await, "app");
}

#[tokio::test]
async fn ssl_and_gssenc_requests_are_declined_without_a_certificate() {
    let (_pg, proxy) = pool_of(2).await;
    let mut a = RawClient::open(&proxy.address()).await;
    a.send_bytes(&wire::gssenc_request()).await;
    assert_eq!(a.read_byte().await, Some(b'N'));
    a.send_bytes(&wire::ssl_request()).await;
    assert_eq!(a.read_byte().await, Some(b'N'));
    a.login(&proxy.address(), &[]).await.unwrap();
    assert_eq!(a.scalar("SELECT 1").await, "1");
}

#[tokio::test]
async fn gssenc_is_declined_and_tls_follows() {
    let (_pg, proxy) = tls_proxy().await;
    let mut a = RawClient::open(&proxy.address()).await;
    a.send_bytes(&wire::gssenc_request()).await;
    assert_eq!(a.read_byte().await, Some(b'N'));
    a.send_bytes(&wire::ssl_request()).await;
    assert_eq!(a.read_byte().await, Some(b'S'));
    let mut b = RawClient::connect(&proxy.address()).await;
    assert_eq!(b.scalar("SELECT 1").await, "1");
}

/// CVE-2021-23214: a man in the middle may put plaintext in front of the handshake.
#[tokio::test]
async fn plaintext_sent_along_with_the_ssl_request_closes_the_connection() {
    let (_pg, proxy) = tls_proxy().await;
    let mut a = RawClient::open(&proxy.address()).await;
    let injected = wire::startup(3, 0, &[("user", "app"), ("database", "appdb")]);
    a.send_all(&[wire::ssl_request(), injected]).await;
    match a.read_byte().await {
        None => return,
        Some(b'S' | b'E') => {}
        other => panic!("answered {other:?}"),
    }
    // Whatever it still says, it takes no login from those bytes: the end comes without authentication.
    let mut rest = Vec::new();
    while let Some(byte) = a.read_byte().await {
        rest.push(byte);
    }
    assert!(!rest.starts_with(b"R"), "the injected start-up was heard: {rest:?}");
}

#[tokio::test]
async fn direct_tls_needs_the_postgresql_alpn() {
    let (_pg, proxy) = tls_proxy().await;
    let address = proxy.address();
    let mut a = RawClient::open_direct_tls(&address, &[b"postgresql"]).await.unwrap();
    a.login(&address, &[]).await.unwrap();
    assert_eq!(a.scalar("SELECT 1").await, "1");
    for alpn in [[].as_slice(), &[b"http/1.1".as_slice()]] {
        if let Ok(mut client) = RawClient::open_direct_tls(&address, alpn).await {
            assert!(client.login(&address, &[]).await.is_err(), "{alpn:?} was let in");
        }
    }
}

#[tokio::test]
async fn later_protocol_versions_are_negotiated_down() {
    let (_pg, proxy) = pool_of(2).await;
    let user = [("user", "app"), ("database", "appdb")];
    for (minor, extra, wanted_options) in
        [(2, None, 0), (0, Some("_pq_.command_tag"), 1), (2, Some("_pq_.something"), 1), (9999, None, 0)]
    {
        let mut a = RawClient::open(&proxy.address()).await;
        let parameters = [&user[..], extra.map(|name| (name, "1")).as_slice()].concat();
        a.send_bytes(&wire::startup(3, minor, &parameters)).await;
        let negotiate = a.read().await.unwrap();
        assert_eq!(negotiate.tag, b'v', "{negotiate:?}");
        let number = |at: usize| u32::from_be_bytes(negotiate.body[at..at + 4].try_into().unwrap());
        assert!(number(0) == 0 || number(0) == 0x0003_0000, "newest minor version: {}", number(0));
        assert_eq!(number(4), wanted_options);
        if let Some(name) = extra {
            assert_eq!(&negotiate.body[8..8 + name.len()], name.as_bytes());
        }
        a.authenticate("app", "app-password").await.unwrap();
        assert_eq!(a.scalar("SELECT 1").await, "1");
    }
}

#[tokio::test]
async fn other_major_versions_are_refused() {
    let (_pg, proxy) = pool_of(2).await;
    for major in [2, 4] {
        let mut a = RawClient::open(&proxy.address()).await;
        a.send_bytes(&wire::startup(major, 0, &[("user", "app")])).await;
        assert_eq!(a.expect_error().await.code, "0A000", "{major}");
        a.expect_closed().await;
    }
}

#[tokio::test]
async fn replication_is_refused() {
    let (_pg, proxy) = pool_of(2).await;
    for value in ["true", "database", "1", "on"] {
        let mut a = RawClient::open(&proxy.address()).await;
        let error = a.login(&proxy.address(), &[("replication", value)]).await.unwrap_err();
        assert_eq!(error.code, "0A000", "{value}");
    }
    let mut a = RawClient::connect_with(&proxy.address(), &[("replication", "false")]).await;
    assert_eq!(a.scalar("SELECT 1").await, "1");
}

#[tokio::test]
async fn each_client_gets_a_key_of_its_own() {
    let (_pg, proxy) = pool_of(1).await;
    let (mut a, b) = (proxy.raw().await, proxy.raw().await);
    let (first, second) = (a.key.clone().unwrap(), b.key.clone().unwrap());
    assert_eq!(first.len(), 8);
    assert_ne!(first, second);
    let server_pid: i32 = a.scalar("SELECT pg_backend_pid()").await.parse().unwrap();
    assert_ne!(first[..4], server_pid.to_be_bytes(), "the server's own key is not handed out");
}

// ---- queries

/// The same script on a connection of one's own and then through a pool of one: every message must be the same.
async fn same_as_direct(requests: &[(&str, Vec<u8>, usize)]) {
    let (pg, proxy) = pool_of(1).await;
    pg.direct().await.execute("CREATE TABLE copied (n int, v text); ALTER TABLE copied OWNER TO app").await;
    let mut answers = Vec::new();
    let mut direct = RawClient::connect(&pg.address()).await;
    for (_, bytes, replies) in requests {
        direct.send_bytes(bytes).await;
        answers.push(direct.transcript(*replies).await);
    }
    drop(direct);
    let mut through = RawClient::connect(&proxy.address()).await;
    for ((what, bytes, replies), wanted) in requests.iter().zip(answers) {
        through.send_bytes(bytes).await;
        assert_eq!(through.transcript(*replies).await, wanted, "{what}");
    }
}

#[tokio::test]
async fn simple_queries_are_answered_as_by_the_server() {
    let requests: Vec<(&str, Vec<u8>, usize)> = [
        "",
        ";",
        " -- only a comment",
        "SELECT 1",
        "SELECT 1; SELECT 2; SELECT 3",
        "SELECT 1; SELECT 1 / 0; SELECT 3",
        "BEGIN",
        "INSERT INTO t (v) VALUES ('x') RETURNING v",
        "SELECT nonsense",
        "SELECT 1",
        "ROLLBACK",
        "BEGIN; SELECT 1; COMMIT; SELECT 2",
        "COMMIT",
        "SELEC 1",
        "SELECT '\u{e4}\u{1f600}'",
        "SELECT NULL, '', 1.5, true",
        "DO $$ BEGIN RAISE NOTICE 'a notice'; RAISE WARNING 'a warning'; END $$",
        "SELECT generate_series(1, 3000)",
        "EXPLAIN (COSTS OFF) SELECT 1",
        "SAVEPOINT outside",
    ]
    .map(|sql| (sql, wire::query(sql), 1))
    .to_vec();
    same_as_direct(&requests).await;
}

#[tokio::test]
async fn copy_is_answered_as_by_the_server() {
    let rows: Vec<u8> = (0..2000).flat_map(|i| format!("{i}\trow {i}\n").into_bytes()).collect();
    let stdin = wire::query("COPY copied FROM STDIN");
    let whole = [stdin.clone(), wire::copy_data(&rows), wire::copy_done()].concat();
    let failing = [stdin.clone(), wire::copy_data(b"1\tx\n"), wire::copy_fail("no more")].concat();
    let malformed = [stdin.clone(), wire::copy_data(b"not a number\tx\n"), wire::copy_done()].concat();
    let extended = [
        wire::parse("", "COPY copied FROM STDIN"),
        wire::bind("", "", &[]),
        wire::execute("", 0),
        wire::sync(),
        wire::copy_data(b"7\tseven\n"),
        wire::copy_done(),
        wire::sync(),
    ];
    same_as_direct(&[
        ("truncate", wire::query("TRUNCATE copied"), 1),
        ("in", whole, 1),
        ("count", wire::query("SELECT count(*), sum(n) FROM copied"), 1),
        ("failing", failing, 1),
        ("malformed", malformed, 1),
        ("no such table", wire::query("COPY nowhere FROM STDIN"), 1),
        ("out", wire::query("COPY copied TO STDOUT"), 1),
        ("out binary", wire::query("COPY (SELECT 1) TO STDOUT (FORMAT binary)"), 1),
        (
            "out fails half-way",
            wire::query("COPY (SELECT 10 / (5 - n) FROM generate_series(1, 9) n) TO STDOUT"),
            1,
        ),
        (
            "stray copy messages",
            [wire::copy_data(b"stray"), wire::copy_done(), wire::query("SELECT 1")].concat(),
            1,
        ),
        ("in, twice in one text", wire::query("SELECT 1; COPY copied TO STDOUT; SELECT 2"), 1),
        ("extended", extended[..3].concat(), 0),
        ("extended data", extended[4..].concat(), 1),
        ("after", wire::query("SELECT count(*) FROM copied"), 1),
    ])
    .await;
}

#[tokio::test]
async fn function_calls_are_answered_as_by_the_server() {
    // int4pl is 177, byteain fails on bad input.
    same_as_direct(&[
        ("int4pl", wire::function_call(177, &["40", "2"]), 1),
        ("no such function", wire::function_call(4_000_000, &[]), 1),
        ("wrong arguments", wire::function_call(177, &["x", "2"]), 1),
        ("after", wire::query("SELECT 1"), 1),
    ])
    .await;
}

#[tokio::test]
async fn flush_brings_replies_without_a_sync() {
    let (_pg, proxy) = pool_of(1).await;
    let mut a = proxy.raw().await;
    a.send_all(&[wire::parse("", "SELECT 1"), wire::flush()]).await;
    assert_eq!(a.read().await.unwrap().tag, b'1');
    a.send_all(&[wire::bind("", "", &[]), wire::flush()]).await;
    assert_eq!(a.read().await.unwrap().tag, b'2');
    a.send_all(&[wire::execute("", 0), wire::flush()]).await;
    assert_eq!(a.read().await.unwrap().tag, b'D');
    assert_eq!(a.read().await.unwrap().tag, b'C');
    // Not synced, so not given away.
    let mut b = proxy.raw().await;
    b.send_bytes(&wire::query("SELECT 2")).await;
    b.expect_silence(Duration::from_millis(200)).await;
    a.send_bytes(&wire::sync()).await;
    assert_eq!(a.read().await.unwrap().tag, b'Z');
    assert_eq!(tags(&b.read_reply().await), "TDCZ");
}

#[tokio::test]
async fn notices_flow_while_a_query_runs() {
    let (_pg, proxy) = pool_of(1).await;
    let a = proxy.connect().await;
    a.execute("DO $$ BEGIN RAISE NOTICE 'one'; RAISE NOTICE 'two'; END $$").await;
    for wanted in ["one", "two"] {
        let Some(AsyncMessage::Notice(notice)) = a.next_message().await else { panic!("no notice") };
        assert_eq!(notice.message(), wanted);
    }
}

#[tokio::test]
async fn notifications_arrive_while_the_listener_is_idle() {
    let (_pg, proxy) = pool_of(2).await;
    let (a, b) = (proxy.connect().await, proxy.connect().await);
    a.execute("LISTEN ch").await;
    for payload in ["first", "second"] {
        b.execute(&format!("NOTIFY ch, '{payload}'")).await;
        let Some(AsyncMessage::Notification(heard)) = a.next_message().await else {
            panic!("no notification")
        };
        assert_eq!((heard.channel(), heard.payload()), ("ch", payload));
    }
    a.execute("SELECT 1").await;
}

#[tokio::test]
async fn changed_settings_are_reported() {
    let (_pg, proxy) = pool_of(1).await;
    let mut a = proxy.raw().await;
    a.query("SET TimeZone = 'Asia/Tokyo'").await;
    assert_eq!(a.parameters["TimeZone"], "Asia/Tokyo");
    a.query("SET application_name = 'renamed'").await;
    assert_eq!(a.parameters["application_name"], "renamed");
}

// ---- size

/// 100 MB of requests whose answers nobody reads until the last is sent: neither side may stop the other.
#[tokio::test]
async fn a_100_mb_pipeline_from_a_client_that_reads_nothing_until_the_end() {
    let (_pg, proxy) = pool_of(1).await;
    let (read, mut write) = logged_in(&proxy.address()).await;
    let filler = "x".repeat(100_000);
    let request = [wire::bind("", "s", &[&filler]), wire::execute("", 0)].concat();
    let writer = tokio::spawn(async move {
        use tokio::io::AsyncWriteExt;
        write.write_all(&wire::parse("s", "SELECT length($1)")).await.unwrap();
        for _ in 0..1000 {
            write.write_all(&request).await.unwrap();
        }
        write.write_all(&wire::sync()).await.unwrap();
        write
    });
    let _write = tokio::time::timeout(Duration::from_secs(120), writer).await.expect("all is taken").unwrap();
    let rows = count_rows(read).await;
    assert_eq!(rows, 1000);
    assert!(proxy.memory_kib("VmHWM") < 200 * 1024, "peak {} KiB", proxy.memory_kib("VmHWM"));
}

/// A pipeline that asks for as much as it sends, read by a slow reader.
#[tokio::test]
async fn replies_larger_than_any_buffer_wait_for_their_reader() {
    let (_pg, proxy) = pool_of(1).await;
    let (read, mut write) = logged_in(&proxy.address()).await;
    let writer = tokio::spawn(async move {
        use tokio::io::AsyncWriteExt;
        write.write_all(&wire::parse("s", "SELECT repeat('y', 100000)")).await.unwrap();
        let request = [wire::bind("", "s", &[]), wire::execute("", 0)].concat();
        write.write_all(&request.repeat(500)).await.unwrap();
        write.write_all(&wire::sync()).await.unwrap();
        write
    });
    let before = proxy.memory_kib("VmRSS");
    let rows = count_rows(read).await;
    assert_eq!(rows, 500);
    let grown = proxy.memory_kib("VmHWM").saturating_sub(before);
    assert!(grown < 16 * 1024, "grown by {grown} KiB");
    writer.await.unwrap();
}

#[tokio::test]
async fn a_value_of_1_gib_passes_without_being_held() {
    let (_pg, proxy) = pool_of(1).await;
    let (read, mut write) = logged_in(&proxy.address()).await;
    let before = proxy.memory_kib("VmRSS");
    // Just under what the server can build as one message, in text: 1,000 MiB.
    let sql = "SELECT repeat('x', 1000 * 1024 * 1024)";
    tokio::io::AsyncWriteExt::write_all(&mut write, &wire::query(sql)).await.unwrap();
    let (rows, bytes) = count(read).await;
    assert_eq!(rows, 1);
    assert!(bytes > 1000 * 1024 * 1024, "{bytes}");
    let grown = proxy.memory_kib("VmHWM").saturating_sub(before);
    println!("1,000 MiB relayed, grown by {grown} KiB");
    assert!(grown < 16 * 1024, "grown by {grown} KiB");
}

#[tokio::test]
async fn a_large_parameter_passes_without_being_held() {
    let (_pg, proxy) = pool_of(1).await;
    let mut a = proxy.raw().await;
    let before = proxy.memory_kib("VmRSS");
    let large = "z".repeat(200 * 1024 * 1024);
    a.send_all(&[wire::parse("", "SELECT length($1)"), wire::bind("", "", &[&large])]).await;
    drop(large);
    a.send_all(&[wire::execute("", 0), wire::sync()]).await;
    let reply = a.read_reply().await;
    let row = reply.iter().find(|m| m.tag == b'D').unwrap();
    assert_eq!(row.columns()[0].as_deref(), Some("209715200"));
    let grown = proxy.memory_kib("VmHWM").saturating_sub(before);
    assert!(grown < 16 * 1024, "grown by {grown} KiB");
}

/// A socket past its login, split for a test that writes and reads at different times.
async fn logged_in(address: &Address) -> (tokio::net::tcp::OwnedReadHalf, tokio::net::tcp::OwnedWriteHalf) {
    // MD5 needs no more than one answer, so the login fits here.
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut socket = tokio::net::TcpStream::connect(("127.0.0.1", address.port)).await.unwrap();
    let startup = wire::startup(3, 0, &[("user", "md5user"), ("database", &address.database)]);
    socket.write_all(&startup).await.unwrap();
    loop {
        let tag = socket.read_u8().await.unwrap();
        let length = socket.read_u32().await.unwrap() as usize;
        let mut body = vec![0; length - 4];
        socket.read_exact(&mut body).await.unwrap();
        match (tag, body.as_slice()) {
            (b'R', [0, 0, 0, 5, salt @ ..]) => {
                let salt = salt.try_into().unwrap();
                let answer =
                    postgres_protocol::authentication::md5_hash(b"md5user", b"md5user-password", salt);
                let message = wire::message(b'p', &[answer.as_bytes(), b"\0"].concat());
                socket.write_all(&message).await.unwrap();
            }
            (b'Z', _) => return socket.into_split(),
            (b'E', _) => panic!("login: {}", body.escape_ascii()),
            _ => {}
        }
    }
}

async fn count_rows(read: tokio::net::tcp::OwnedReadHalf) -> usize {
    count(read).await.0
}

/// `DataRow`s and bytes up to `ReadyForQuery`, without keeping them.
async fn count(read: tokio::net::tcp::OwnedReadHalf) -> (usize, usize) {
    use tokio::io::AsyncReadExt;
    let mut read = tokio::io::BufReader::with_capacity(1 << 20, read);
    let (mut rows, mut bytes) = (0, 0);
    loop {
        let tag = read.read_u8().await.unwrap();
        let length = read.read_u32().await.unwrap() as usize - 4;
        let mut body = (&mut read).take(length as u64);
        if tag == b'E' {
            let mut text = Vec::new();
            body.read_to_end(&mut text).await.unwrap();
            panic!("{}", text.escape_ascii());
        }
        tokio::io::copy_buf(&mut tokio::io::BufReader::with_capacity(1 << 20, body), &mut tokio::io::sink())
            .await
            .unwrap();
        bytes += length;
        match tag {
            b'D' => rows += 1,
            b'Z' => return (rows, bytes),
            _ => {}
        }
    }
}
