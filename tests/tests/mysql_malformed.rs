//! Malformed and truncated packets from either side: a clean error or a close, no panic, no leaked connection, and
//! never a byte of another client's.
#![allow(clippy::unwrap_used)]

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU32, Ordering},
};

use pinion_tests::{
    Address, Answer, MariaDb, Proxy, RawMySql, RawServer, Server,
    raw_mysql::{Login, Reply, capability, command, lenenc, lenenc_bytes, packet},
    until,
};
use tokio::task::JoinHandle;

/// Packets tried from each side.
const CASES: u32 = 300;

/// Stands in everything that the neighbour is answered.
const SECRET: &str = "the-neighbours-own";

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

/// One of `sound`, spoilt: cut short, a wrong length, a wrong sequence number, flipped bytes, a length within that is
/// too long, another command, more behind it, or pure noise.
fn spoil(random: &mut Random, sound: &[Vec<u8>]) -> Vec<u8> {
    let mut message = sound[random.below(sound.len())].clone();
    match random.below(9) {
        0 => message.truncate(random.below(message.len()).max(1)),
        1 => message[..3].copy_from_slice(&[0xff, 0xff, 0xff]),
        2 => message[..3].copy_from_slice(&[random.bytes(1)[0], random.below(2) as u8, 0]),
        3 => message[3] = random.bytes(1)[0],
        4 if message.len() > 4 => message[4] = random.bytes(1)[0],
        5 => {
            for _ in 0..3 {
                let at = random.below(message.len());
                message[at] ^= 1 << random.below(8);
            }
        }
        6 if message.len() > 5 => {
            let at = 5 + random.below(message.len() - 5);
            message[at] = [0xfa, 0xfb, 0xfc, 0xfd, 0xfe, 0xff][random.below(6)];
        }
        7 => {
            let behind = random.below(20);
            message.extend(random.bytes(behind));
        }
        _ => {
            let length = 1 + random.below(64);
            message = random.bytes(length);
        }
    }
    message
}

fn client_packets() -> Vec<Vec<u8>> {
    let id = 1_u32.to_le_bytes();
    let execute = [id.as_slice(), &[0, 1, 0, 0, 0, 0, 1, 0xfd, 0], &lenenc_bytes(b"7")].concat();
    let cursor = [id.as_slice(), &[1, 1, 0, 0, 0, 0, 1, 0xfd, 0], &lenenc_bytes(b"7")].concat();
    let change = [b"app2\0\x14".as_slice(), &[7; 20], b"appdb\0\x2d\0mysql_native_password\0"].concat();
    let long = [id.as_slice(), &[0, 0], b"long data"].concat();
    [
        (command::QUERY, b"SELECT 1".as_slice()),
        (command::QUERY, b"LOAD DATA LOCAL INFILE 'f' INTO TABLE t (v)"),
        (command::QUERY, b"KILL QUERY 7"),
        (command::STMT_PREPARE, b"SELECT ?"),
        (command::STMT_EXECUTE, &execute),
        (command::STMT_EXECUTE, &cursor),
        (command::STMT_SEND_LONG_DATA, &long),
        (command::STMT_FETCH, &[id, id].concat()),
        (command::STMT_RESET, &id),
        (command::STMT_CLOSE, &id),
        (command::INIT_DB, b"otherdb"),
        (command::FIELD_LIST, b"t\0"),
        (command::PING, b""),
        (command::STATISTICS, b""),
        (command::SET_OPTION, &[0, 0]),
        (command::RESET_CONNECTION, b""),
        (command::CHANGE_USER, &change),
        (command::PROCESS_KILL, &id),
    ]
    .map(|(code, body)| packet(0, &[&[code], body].concat()).0)
    .to_vec()
}

/// `message: lenenc_bytes` of a column definition named `n`, an integer.
fn column() -> Vec<u8> {
    let names = [b"def".as_slice(), b"", b"", b"", b"n", b"n"].map(lenenc_bytes).concat();
    [names.as_slice(), &[0x0c, 63, 0, 11, 0, 0, 0, 3, 0, 0, 0, 0, 0]].concat()
}

fn server_payloads() -> Vec<Vec<u8>> {
    vec![
        b"\0\0\0\x02\0\0\0".to_vec(),
        b"\0\x01\x05\x0a\0\0\0\x04info".to_vec(),
        b"\0\0\0\x02\x40\0\0\0\x0a\x01\x05\x04test\x02\x01\x31".to_vec(),
        b"\0\0\0\x02\x40\0\0\0\x0f\0\x0d\x0aautocommit\x03OFF".to_vec(),
        b"\xff\x28\x04#42000You have an error".to_vec(),
        b"\xfe\0\0\x02\0".to_vec(),
        b"\xfe\0\0\x02\0\0\0".to_vec(),
        b"\xfe\0\0\x0a\0\0\0".to_vec(),
        b"\x01".to_vec(),
        b"\x02".to_vec(),
        lenenc(70_000),
        column(),
        b"\x017".to_vec(),
        b"\xfb".to_vec(),
        b"\xfb/etc/hostname".to_vec(),
        b"\0\x01\0\0\0\x01\0\x01\0\0\0\0".to_vec(),
        b"\0\0\x07".to_vec(),
        b"\x0a5.5.5-10.11\0\x01\0\0\0abcdefgh\0".to_vec(),
        b"\xfemysql_native_password\0aaaaaaaaaaaaaaaaaaaa\0".to_vec(),
    ]
}

/// Another client of the same user, who goes on all the time and must get his own answers and nobody else's.
struct Neighbour {
    stop: Arc<AtomicBool>,
    rounds: Arc<AtomicU32>,
    task: JoinHandle<()>,
}

impl Neighbour {
    fn of(proxy: &Proxy) -> Self {
        let (stop, rounds) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
        let (stopped, counted, address) = (Arc::clone(&stop), Arc::clone(&rounds), proxy.address());
        let task = tokio::spawn(async move {
            let mut client = RawMySql::connect_with(&address, capability::NEW).await;
            client.ok("SET @own = 'the-neighbours-own'").await;
            for n in 0_u32.. {
                if stopped.load(Ordering::Relaxed) {
                    break;
                }
                let row = client.rows(&format!("SELECT {n}, @own, database()")).await;
                let wanted = [n.to_string(), SECRET.to_owned(), "appdb".to_owned()].map(Some);
                assert_eq!(row, [wanted]);
                counted.store(n, Ordering::Relaxed);
            }
        });
        Self { stop, rounds, task }
    }

    async fn stays_content(self) {
        let before = self.rounds.load(Ordering::Relaxed);
        until("the neighbour goes on", async || {
            self.task.is_finished() || self.rounds.load(Ordering::Relaxed) > before + 1
        })
        .await;
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.unwrap();
    }
}

#[track_caller]
fn is_not_the_neighbours(bytes: &[u8]) {
    let found = bytes.windows(SECRET.len()).any(|window| window == SECRET.as_bytes());
    assert!(!found, "another client's data: {}", bytes.escape_ascii());
}

/// After everything: no client or server connection is left that nobody uses, and the proxy serves.
async fn all_is_well(db: &MariaDb, proxy: &Proxy, budget: u32) {
    until("no client is left", async || proxy.metric("pinion_client_connections", &[]).await == 0.0).await;
    until("nothing is borrowed", async || {
        proxy.metric("pinion_database_connections_currently_borrowed", &[]).await == 0.0
    })
    .await;
    until("server connections are within the budget", async || db.backends().await <= budget).await;
    let mut client = proxy.raw_mysql().await;
    let row = client.rows("SELECT 42, database(), @own").await;
    assert_eq!(row, [[Some("42".to_owned()), Some("appdb".to_owned()), None]]);
    let open = "SELECT count(*) FROM information_schema.innodb_trx";
    until("no transaction is open", async || db.direct().await.scalar::<u32>(open).await == 0).await;
    assert!(!proxy.log().contains("panicked at"));
}

/// [`SECRET`] in no answer of the log-in phase either: a client of a pool of one or two.
async fn pool_of(n: u32) -> (MariaDb, Proxy) {
    let db = Server::mariadb().start().await;
    let builder = Proxy::in_front_of(&db).max_connections(n).proxy_setting("failed_logins_per_minute = 0");
    (db, builder.start().await)
}

#[tokio::test]
async fn malformed_packets_from_clients() {
    let (db, proxy) = pool_of(2).await;
    let neighbour = Neighbour::of(&proxy);
    let mut random = Random(20_264);
    let sound = client_packets();
    let (mut errors, mut others) = (0, 0);
    for case in 0..CASES {
        let flags = [capability::OLD, capability::NEW, capability::NEW | capability::LOCAL_FILES];
        let flags = flags[case as usize % 3] | if case % 7 == 0 { capability::COMPRESS } else { 0 };
        let mut client = RawMySql::connect_with(&proxy.address(), flags).await;
        if case % 4 == 0 {
            client.ok("BEGIN").await;
        }
        if case % 5 != 0 {
            client.prepare("SELECT ?").await.unwrap();
        }
        client.send_bytes(&spoil(&mut random, &sound)).await;
        client.send_bytes(&packet(0, &[command::QUIT]).0).await;
        client.finish_sending().await;
        let said = client.read_bytes_to_end().await;
        is_not_the_neighbours(&said);
        match said.get(4) {
            Some(0xff) => errors += 1,
            _ => others += 1,
        }
    }
    println!("{CASES} malformed packets of clients: {errors} answered with an error, {others} otherwise");
    assert!(errors > CASES / 10, "{errors}");
    neighbour.stays_content().await;
    all_is_well(&db, &proxy, 2).await;
}

#[tokio::test]
async fn malformed_logins() {
    let (db, proxy) = pool_of(2).await;
    let neighbour = Neighbour::of(&proxy);
    let mut random = Random(1886);
    let flags = (capability::NEW | capability::COMPRESS) as u32;
    let start = [flags.to_le_bytes().as_slice(), &[0, 0, 0, 1, 45], &[0; 23]].concat();
    let response = [
        start.as_slice(),
        b"app\0",
        &lenenc_bytes(&[7; 20]),
        b"appdb\0mysql_native_password\0",
        &lenenc_bytes(b"\x0cprogram_name\x03raw"),
    ]
    .concat();
    let sound = [packet(1, &response).0, packet(1, &start).0];
    let mut errors = 0;
    for _ in 0..CASES {
        let mut client = RawMySql::open(&proxy.address()).await.unwrap();
        client.send_bytes(&spoil(&mut random, &sound)).await;
        // What passes for a login gets this as its answer to what it is asked.
        client.send_bytes(&spoil(&mut random, &[packet(3, &[9; 20]).0])).await;
        client.finish_sending().await;
        let said = client.read_bytes_to_end().await;
        is_not_the_neighbours(&said);
        assert_ne!(said.get(4), Some(&0), "let in: {}", said.escape_ascii());
        errors += u32::from(said.get(4) == Some(&0xff));
    }
    assert!(errors > CASES / 4, "{errors}");
    neighbour.stays_content().await;
    all_is_well(&db, &proxy, 2).await;
}

/// A client that goes away in the midst of a packet, of each kind and at each place that matters: what it began at the
/// server is not the next client's.
#[tokio::test]
async fn half_a_packet_and_no_more() {
    let (db, proxy) = pool_of(1).await;
    let flags = capability::NEW | capability::LOCAL_FILES;
    let query = packet(0, &[&[command::QUERY], "SELECT 1".as_bytes()].concat()).0;
    let long =
        [vec![0xff, 0xff, 0xff, 0, command::QUERY], b"SELECT '".to_vec(), vec![b'x'; 5 << 20]].concat();
    for (what, begin, bytes) in [
        ("a header", None, query[..2].to_vec()),
        ("a header and no more", None, query[..4].to_vec()),
        ("a short query", None, query[..8].to_vec()),
        ("a short query in a transaction", Some("BEGIN"), query[..8].to_vec()),
        ("a long query", None, long.clone()),
        ("a long query in a transaction", Some("BEGIN"), long),
    ] {
        let mut client = RawMySql::connect_with(&proxy.address(), flags).await;
        if let Some(begin) = begin {
            client.ok(begin).await;
            client.ok("INSERT INTO t (v) VALUES ('half')").await;
        }
        client.send_bytes(&bytes).await;
        client.finish_sending().await;
        client.read_bytes_to_end().await;
        let mut next = proxy.raw_mysql().await;
        assert_eq!(next.rows("SELECT 7").await, [[Some("7".to_owned())]], "{what}");
        assert_eq!(next.scalar("SELECT count(*) FROM t WHERE v = 'half'").await, "0", "{what}");
    }
    // Within an execution, long data and a file.
    for what in ["execution", "long data", "file"] {
        let mut client = RawMySql::connect_with(&proxy.address(), flags).await;
        let prepared = client.prepare("INSERT INTO t (v) VALUES (?)").await.unwrap();
        let id = prepared.id.to_le_bytes();
        match what {
            "execution" => {
                let front = [vec![0xff, 0xff, 0x7f, 0, command::STMT_EXECUTE], id.to_vec()].concat();
                let rest = [0, 1, 0, 0, 0, 0, 1, 0xfd, 0, 0xfd, 0, 0, 0x70, b'h', b'a', b'l', b'f'];
                client.send_bytes(&[front.as_slice(), &rest].concat()).await;
            }
            "long data" => {
                client.send_long_data(prepared.id, 0, b"half").await;
                let front = [vec![0xff, 0xff, 0x7f, 0, command::STMT_SEND_LONG_DATA], id.to_vec()].concat();
                client.send_bytes(&[front.as_slice(), b"\0\0half"].concat()).await;
            }
            _ => {
                client.command(command::QUERY, b"LOAD DATA LOCAL INFILE 'f' INTO TABLE t (v)").await;
                assert!(matches!(client.read_reply().await, Reply::WantsFile(_)));
                client.send(b"half\n").await;
                client.send_bytes(b"\xff\xff\x7f\x03half").await;
            }
        }
        client.finish_sending().await;
        client.read_bytes_to_end().await;
        let mut next = proxy.raw_mysql().await;
        let prepared = next.prepare("SELECT count(*) FROM t WHERE v LIKE concat(?, '%')").await.unwrap();
        let replies = next.execute(prepared.id, 0, &[Some("half")]).await;
        let [Reply::Rows(rows)] = replies.as_slice() else { panic!("{what}: {replies:?}") };
        assert_eq!(rows.values(), [[Some("0".to_owned())]], "{what}");
    }
    all_is_well(&db, &proxy, 1).await;
}

/// Text that a classifier finds hard to cut must neither end the proxy nor another's session.
#[tokio::test]
async fn statements_in_broken_encodings_are_the_servers_affair() {
    let (db, proxy) = pool_of(1).await;
    let mut direct = RawMySql::connect(&db.address()).await;
    let mut client = proxy.raw_mysql().await;
    for bytes in [
        b"SELECT '\xff\xfe'".as_slice(),
        b"SELECT \xe9",
        b"SELECT 'never ends",
        b"SELECT /* never ends",
        b"SELECT /*! 1",
        b"SELECT `never ends",
        b"\0",
        b"SELECT 1\0; SELECT 2",
        b"(((((((((((((((((((((((((((((((((((((((((((((((",
        b"SELECT 1 -- \n + 1",
        b"DELIMITER //",
    ] {
        let mut replies = Vec::new();
        for client in [&mut direct, &mut client] {
            client.command(command::QUERY, bytes).await;
            replies.push(format!("{:?}", client.read_replies().await));
        }
        assert_eq!(replies[0], replies[1], "{}", bytes.escape_ascii());
    }
    drop((direct, client));
    all_is_well(&db, &proxy, 1).await;
}

/// The statement names its case, so that the answer can be made where it is asked for.
async fn misbehaving(db: &MariaDb, answer: impl Fn(u64) -> Answer + Send + Sync + 'static) -> RawServer {
    RawServer::in_front_of_mariadb(db, move |body| {
        let text = String::from_utf8_lossy(body);
        let (_, after) = text.split_once("MALFORMED ")?;
        Some(answer(after.split_whitespace().next()?.parse().ok()?))
    })
    .await
}

async fn in_front_of(db: &MariaDb, raw: &RawServer, n: u32) -> Proxy {
    Proxy::in_front_of(db)
        .max_connections(n)
        .target_port(raw.port())
        .pool("connection_borrow_timeout = \"10s\"")
        .start()
        .await
}

#[tokio::test]
async fn malformed_packets_from_the_server() {
    let db = Server::mariadb().start().await;
    let sound = server_payloads();
    let raw = misbehaving(&db, move |case| {
        let mut random = Random(case);
        let mut bytes = Vec::new();
        let mut sequence = 1;
        for _ in 0..random.below(4) {
            let (sent, next) = packet(sequence, &sound[random.below(sound.len())]);
            bytes.extend(sent);
            sequence = next;
        }
        let last = packet(sequence, &sound[random.below(sound.len())]).0;
        bytes.extend(spoil(&mut random, &[last]));
        Answer::BytesThenClose(bytes)
    })
    .await;
    let proxy = in_front_of(&db, &raw, 2).await;
    let neighbour = Neighbour::of(&proxy);
    let mut told = 0;
    for case in 0..CASES {
        let flags = [capability::OLD, capability::NEW, capability::NEW | capability::LOCAL_FILES];
        let mut client = RawMySql::connect_with(&proxy.address(), flags[case as usize % 3]).await;
        let code = if case % 2 == 0 { command::QUERY } else { command::STMT_PREPARE };
        client.command(code, format!("SELECT 1 /* MALFORMED {case} */ ").as_bytes()).await;
        client.send_bytes(&packet(0, &[command::QUIT]).0).await;
        client.finish_sending().await;
        // It is told something or its connection ends; it never hangs.
        let said = client.read_bytes_to_end().await;
        is_not_the_neighbours(&said);
        told += u32::from(!said.is_empty());
    }
    println!("{CASES} malformed packets of the server: {told} clients were told something");
    assert!(told > CASES / 4, "only {told} were told");
    neighbour.stays_content().await;
    all_is_well(&db, &proxy, 2).await;
}

/// A server that says more than it was asked for: what is too much is nobody's.
#[tokio::test]
async fn what_a_server_says_unasked_reaches_no_client() {
    let db = Server::mariadb().start().await;
    let ok = packet(1, b"\0\0\0\x02\0\0\0").0;
    let row = |sequence: u8| packet(sequence, &lenenc_bytes(b"nobody's")).0;
    let set =
        [packet(1, b"\x01").0, packet(2, &column()).0, row(3), packet(4, b"\xfe\0\0\x02\0\0\0").0].concat();
    let surplus =
        [ok.clone(), set.clone(), row(5), packet(1, b"\xff\x28\x04#42000nobody's").0, b"\x01".to_vec()];
    let cases = surplus.len() as u64;
    let raw = misbehaving(&db, move |case| {
        let more = &surplus[usize::try_from(case % cases).unwrap()];
        Answer::Bytes([if case < cases { &ok } else { &set }, more.as_slice()].concat())
    })
    .await;
    let proxy = in_front_of(&db, &raw, 1).await;
    for case in 0..2 * cases {
        let mut client = proxy.raw_mysql().await;
        client.command(command::QUERY, format!("SELECT 1 /* MALFORMED {case} */ ").as_bytes()).await;
        client.read().await;
        drop(client);
        for _ in 0..3 {
            let mut next = proxy.raw_mysql().await;
            assert_eq!(
                next.rows("SELECT 'own', 5").await,
                [["own", "5"].map(|v| Some(v.to_owned()))],
                "{case}"
            );
            assert_eq!(next.ok("UPDATE t SET v = v WHERE id = 0").await.affected, 0, "{case}");
        }
    }
    all_is_well(&db, &proxy, 1).await;
}

/// A server that stops in the midst of a row: the client's stream is cut there, not patched up.
#[tokio::test]
async fn a_row_cut_in_the_middle_ends_the_client_connection() {
    let db = Server::mariadb().start().await;
    let raw = misbehaving(&db, |_| {
        let head = [packet(1, b"\x01").0, packet(2, &column()).0].concat();
        // It promises 10,000 bytes.
        let row = [b"\x10\x27\0\x03".as_slice(), b"\xfc\x0d\x27", &[b'x'; 5000]].concat();
        Answer::BytesThenClose([head, row].concat())
    })
    .await;
    let proxy = in_front_of(&db, &raw, 2).await;
    for flags in [capability::OLD, capability::NEW] {
        let mut client = RawMySql::connect_with(&proxy.address(), flags).await;
        client.command(command::QUERY, b"SELECT 1 /* MALFORMED 0 */ ").await;
        let said = client.read_bytes_to_end().await;
        assert!(said.ends_with(&[b'x'; 5000]), "something stands behind the row");
        assert!(said.len() < 6000, "{}", said.len());
    }
    all_is_well(&db, &proxy, 2).await;
}

/// A server that never answers keeps its client waiting, and nobody else.
#[tokio::test]
async fn a_silent_server_connection_is_closed_with_its_client() {
    let db = Server::mariadb().start().await;
    let raw = misbehaving(&db, |_| Answer::Silence).await;
    let proxy = in_front_of(&db, &raw, 1).await;
    let mut client = proxy.raw_mysql().await;
    client.command(command::QUERY, b"SELECT 1 /* MALFORMED 0 */ ").await;
    until("it is lent", async || {
        proxy.metric("pinion_database_connections_currently_borrowed", &[]).await == 1.0
    })
    .await;
    drop(client);
    all_is_well(&db, &proxy, 1).await;
}

/// A request for a file that the client's own statement cannot have caused: it is a matter between the two, and the
/// client that does not send files never sees it.
#[tokio::test]
async fn a_server_cannot_ask_a_client_for_files_that_does_not_send_any() {
    let db = Server::mariadb().start().await;
    let raw = misbehaving(&db, |_| Answer::Bytes(packet(1, b"\xfb/etc/passwd").0)).await;
    let proxy = in_front_of(&db, &raw, 1).await;
    let address: Address = proxy.address();
    for flags in [capability::OLD, capability::NEW] {
        let mut client = RawMySql::open(&address).await.unwrap();
        client.login(&address, &Login::new(&address, flags)).await.unwrap();
        client.command(command::QUERY, b"SELECT 1 /* MALFORMED 0 */ ").await;
        let said = client.read_bytes_to_end().await;
        assert!(!said.windows(6).any(|bytes| bytes == b"passwd"), "{}", said.escape_ascii());
    }
    all_is_well(&db, &proxy, 1).await;
}
