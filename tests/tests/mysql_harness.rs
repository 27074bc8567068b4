//! The harness itself, against a MariaDB without any proxy.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use pinion_tests::{
    Cluster, MySqlClient, RawMySql, Server, foreign,
    raw_mysql::{Change, Login, Reply, capability, command, status},
    until,
};

#[tokio::test]
async fn a_private_server_has_the_users_and_tables_of_the_tests() {
    let db = Server::mariadb().max_connections(23).setting("sort-buffer-size", "262144").start().await;
    assert_eq!(db.backends().await, 0);
    let app = MySqlClient::connect(&db.address()).await.unwrap();
    assert_eq!(db.backends().await, 1);
    assert_eq!(app.scalar::<u32>("SELECT @@max_connections").await, 23);
    assert_eq!(app.scalar::<u32>("SELECT @@sort_buffer_size").await, 262_144);
    assert_eq!(app.scalar::<String>("SELECT v FROM t WHERE id = 2").await, "two");
    assert_eq!(app.exec("SELECT v FROM otherdb.t WHERE id = ?", (3,)).await, [[Some("three".to_owned())]]);
    assert_eq!(app.error("SELECT nothing").await, (1054, "42S22".to_owned()));
    assert_eq!(app.rows("SELECT 1; SELECT 2, NULL").await.len(), 2);
    app.in_transaction("INSERT INTO t (v) VALUES ('four')").await;
    app.execute("UPDATE t SET v = concat(v, '!')").await;
    assert_eq!(app.affected().await, 4);
    assert_eq!(app.scalar::<u32>("SELECT nextval(counter)").await, 1);
    app.close().await;
    assert!(MySqlClient::connect(&db.address().user("app2", "wrong")).await.is_err());
    let log = db.general_log();
    assert!(log.contains("SELECT v FROM t WHERE id = 2") && log.contains("Execute"), "{log}");
    let socket: String = db.direct().await.scalar("SELECT @@socket").await;
    assert_eq!(socket, "", "nothing can go past the port");
}

#[tokio::test]
async fn the_raw_client_reads_whole_replies_with_and_without_eof_packets() {
    let db = Server::mariadb().start().await;
    for flags in [capability::OLD, capability::NEW] {
        let mut client = RawMySql::connect_with(&db.address(), flags).await;
        assert_eq!(client.steps, ["mysql_native_password"]);
        assert_eq!(client.scalar("SELECT 40 + 2").await, "42");
        assert_eq!(client.rows("SELECT NULL, ''").await, [[None, Some(String::new())]]);
        assert!(client.rows("SELECT 1 FROM t WHERE id = 99").await.is_empty());
        let inserted = client.ok("INSERT INTO t (v) VALUES ('raw')").await;
        assert_eq!((inserted.affected, inserted.status), (1, status::AUTOCOMMIT));
        assert!(inserted.insert_id > 3);
        let error = client.error("SELECT nothing").await;
        assert_eq!((error.code, error.state.as_str()), (1054, "42S22"));
        assert_eq!(client.ok("BEGIN").await.status & status::IN_TRANS, status::IN_TRANS);
        client.ok("ROLLBACK").await;
        client.simple(command::PING, &[]).await.unwrap();
        client.simple(command::INIT_DB, b"otherdb").await.unwrap();
        assert_eq!(client.scalar("SELECT database()").await, "otherdb");

        // Several replies: of one text, and of a procedure.
        client.simple(command::SET_OPTION, &[0, 0]).await.unwrap();
        let replies = client.query("SELECT 1; DO 2; SELECT 3").await;
        assert!(matches!(replies.as_slice(), [Reply::Rows(_), Reply::Done(_), Reply::Rows(_)]));
        client.ok("CREATE OR REPLACE PROCEDURE two() BEGIN SELECT 1; SELECT 2; END").await;
        assert_eq!(client.query("CALL two()").await.len(), 3);

        let prepared =
            client.prepare("SELECT id, v FROM t WHERE id <= ? OR v = ? ORDER BY id").await.unwrap();
        assert_eq!((prepared.parameters.len(), prepared.columns.len()), (2, 2));
        let replies = client.execute(prepared.id, 0, &[Some("2"), None]).await;
        let [Reply::Rows(rows)] = replies.as_slice() else { panic!("{replies:?}") };
        assert_eq!(rows.values()[1], [Some("2".to_owned()), Some("two".to_owned())]);
        // A cursor's rows come when they are asked for.
        let replies = client.execute(prepared.id, 1, &[Some("3"), None]).await;
        let [Reply::Rows(rows)] = replies.as_slice() else { panic!("{replies:?}") };
        assert!(rows.rows.is_empty());
        assert_ne!(replies[0].status().unwrap() & status::CURSOR_EXISTS, 0);
        let (first, end) = client.fetch(prepared.id, 2).await;
        assert_eq!((first.len(), end.unwrap().status & status::LAST_ROW_SENT), (2, 0));
        let (last, end) = client.fetch(prepared.id, 2).await;
        assert_eq!(last.len(), 1);
        assert_ne!(end.unwrap().status & status::LAST_ROW_SENT, 0);
        client.close_statement(prepared.id).await;
        assert_eq!(client.prepare("SELEC 1").await.unwrap_err().code, 1064);

        client.simple(command::RESET_CONNECTION, &[]).await.unwrap();
        let login = Login::new(&db.address().user("app2", "app2-password").database("appdb"), flags);
        client.change_user(&login).await.unwrap();
        assert_eq!(client.scalar("SELECT concat(current_user(), ' ', database())").await, "app2@% appdb");
        client.command(command::QUIT, &[]).await;
        assert!(client.expect_closed().await.is_empty());
    }
}

#[tokio::test]
async fn the_raw_client_sees_what_changed_in_the_session() {
    let db = Server::mariadb().start().await;
    let mut client = RawMySql::connect_with(&db.address(), capability::NEW).await;
    let changes = client.ok("USE otherdb").await.changes;
    assert_eq!(changes, [Change::Schema("otherdb".to_owned())]);
    let changes = client.ok("SET autocommit = 0").await.changes;
    assert_eq!(changes, [Change::Variable("autocommit".to_owned(), "OFF".to_owned())]);
    client.ok("SET autocommit = 1, session_track_transaction_info = 'CHARACTERISTICS'").await;
    let changes = client.ok("START TRANSACTION READ ONLY").await.changes;
    assert_eq!(
        changes,
        [
            Change::Transaction("T_______".to_owned()),
            Change::Characteristics("START TRANSACTION READ ONLY;".to_owned())
        ]
    );
}

#[tokio::test]
async fn the_raw_client_sends_and_reads_packets_over_sixteen_mebibytes() {
    let db = Server::mariadb().start().await;
    let mut client = RawMySql::connect(&db.address()).await;
    // Just a packet, just over, and two.
    for length in [0xff_ffff - 1, 0xff_ffff, 0xff_ffff + 1, 0xff_ffff * 2] {
        let text = "x".repeat(length - "SELECT ''".len() - 1);
        let sent = format!("SELECT '{text}'");
        assert_eq!(client.rows(&sent).await[0][0].as_deref(), Some(text.as_str()));
    }
}

#[tokio::test]
async fn tls_files_and_other_methods_work() {
    let db = Server::mariadb().tls().start().await;
    let mut address = db.address();
    address.ca = db.ca().cloned();
    let secure = MySqlClient::connect(&address).await.unwrap();
    assert_ne!(secure.rows("SHOW STATUS LIKE 'Ssl_cipher'").await[0][1].as_deref(), Some(""));
    let mut raw = RawMySql::connect_with(&address, capability::NEW | capability::LOCAL_FILES).await;
    raw.command(command::QUERY, b"LOAD DATA LOCAL INFILE 'lines' INTO TABLE t (v)").await;
    let Reply::WantsFile(name) = raw.read_reply().await else { panic!("it wants a file") };
    assert_eq!(name, "lines");
    raw.send_file(&[b"a\nb", b"c\n"]).await;
    let Reply::Done(done) = raw.read_reply().await else { panic!("the file is loaded") };
    assert_eq!((done.affected, done.info.starts_with("Records: 2")), (2, true), "{done:?}");

    // The server switches to the method of the account.
    let mut client = RawMySql::open(&db.address()).await.unwrap();
    assert!(client.greeting.version.contains("10.11"), "{:?}", client.greeting);
    let login = Login::new(&db.address(), capability::NEW).plugin("caching_sha2_password");
    client.login(&db.address(), &login).await.unwrap();
    assert_eq!(client.steps, ["caching_sha2_password", "mysql_native_password"]);
    let ed25519 = db.address().user("ed25519user", "ed25519user-password");
    assert_eq!(foreign::mariadb(&ed25519, &["-N"], "SELECT current_user()").await, "ed25519user@%\n");
    let wrong = Login::new(&db.address().user("app", "wrong"), capability::NEW);
    let mut client = RawMySql::open(&db.address()).await.unwrap();
    assert_eq!(client.login(&db.address(), &wrong).await.unwrap_err().code, 1045);
}

#[tokio::test]
async fn a_server_comes_back_after_a_crash_with_what_it_has_acknowledged() {
    let mut db = Server::mariadb().start().await;
    let mut client = RawMySql::connect(&db.address()).await;
    client.ok("INSERT INTO t (v) VALUES ('kept')").await;
    client.expect_silence(Duration::from_millis(1)).await;
    db.restart().await;
    assert!(client.expect_closed().await.is_empty());
    assert_eq!(db.direct().await.scalar::<u32>("SELECT count(*) FROM t WHERE v = 'kept'").await, 1);
}

#[tokio::test]
async fn a_replica_follows_its_primary_and_takes_its_place() {
    let mut cluster = Cluster::mariadb(2).await;
    cluster.primary.direct().await.execute("INSERT INTO t (v) VALUES ('four')").await;
    cluster.caught_up().await;
    for standby in &cluster.standbys {
        let app = MySqlClient::connect(&standby.address()).await.unwrap();
        assert_eq!(app.scalar::<String>("SELECT v FROM t WHERE id = 4").await, "four");
        assert_eq!(app.errno("INSERT INTO t (v) VALUES ('five')").await, 1290);
    }
    for to in [0, 1, 0] {
        cluster.switch_over(to).await;
        let app = MySqlClient::connect(&cluster.primary.address()).await.unwrap();
        app.execute("INSERT INTO t (v) VALUES ('more')").await;
        cluster.caught_up().await;
        for standby in &cluster.standbys {
            let app = MySqlClient::connect(&standby.address()).await.unwrap();
            assert_eq!(app.errno("INSERT INTO t (v) VALUES ('no')").await, 1290);
        }
    }
    for server in cluster.servers() {
        let direct = server.direct().await;
        assert_eq!(direct.scalar::<u32>("SELECT count(*) FROM t WHERE v = 'more'").await, 3);
    }
    // One that has died does without a farewell.
    cluster.primary.stop();
    cluster.standbys[0].promote().await;
    let app = MySqlClient::connect(&cluster.standbys[0].address()).await.unwrap();
    app.execute("INSERT INTO t (v) VALUES ('last')").await;
    until("nobody is left", async || cluster.standbys[1].backends().await == 0).await;
}
