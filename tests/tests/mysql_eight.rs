//! A real MySQL 8 behind the proxy. Every test is skipped, and says so, where `cargo xtask mysql8` has found none.
#![allow(clippy::unwrap_used)]

use std::fmt::Write;

use pinion_tests::{
    Address, MariaDb, MySqlClient, Proxy, RawMySql, Server, foreign,
    raw_mysql::{Reply, Rows, capability},
    server_error,
    transcript::{same, same_through_pinion},
    until,
};

/// The server of a test, which has let `app` and `app2` in before: many drivers log in without TLS only where they need
/// not send the password.
async fn server() -> Option<MariaDb> {
    let db = Server::mysql_eight()?.start().await;
    for user in ["app", "app2"] {
        let address = db.address().user(user, &format!("{user}-password"));
        assert_eq!(RawMySql::connect(&address).await.steps, ["caching_sha2_password", "full by RSA"]);
        assert_eq!(RawMySql::connect(&address).await.steps, ["caching_sha2_password", "fast"]);
    }
    Some(db)
}

async fn python(driver: &str) {
    same_everywhere(async |address| foreign::mysql_python(driver, address).await).await;
}

async fn node(driver: &str) {
    same_everywhere(async |address| foreign::mysql_node(driver, address).await).await;
}

/// The server's own certificate names no host, so that drivers that verify it go over TLS through the proxy only.
async fn same_everywhere(program: impl AsyncFn(&Address) -> String) {
    let Some(db) = server().await else { return };
    let expected = program(&db.address()).await;
    assert!(expected.lines().count() > 2, "{expected}");
    same_through_pinion(&db, &expected, program).await;
}

#[tokio::test]
async fn pymysql() {
    python("pymysql").await;
}

#[tokio::test]
async fn pymysql_values_over_sixteen_mebibytes() {
    python("pymysql_blob").await;
}

#[tokio::test]
async fn what_one_session_sets_another_does_not_see() {
    python("pymysql_state").await;
}

#[tokio::test]
async fn mysqlclient() {
    python("mysqlclient").await;
}

#[tokio::test]
async fn connector_pure() {
    python("connector_pure").await;
}

#[tokio::test]
async fn connector_pure_prepared() {
    python("connector_pure_prepared").await;
}

#[tokio::test]
async fn connector_c() {
    python("connector_c").await;
}

#[tokio::test]
async fn connector_c_prepared() {
    python("connector_c_prepared").await;
}

#[tokio::test]
async fn asyncmy() {
    python("asyncmy").await;
}

#[tokio::test]
async fn sqlalchemy() {
    python("sqlalchemy").await;
}

#[tokio::test]
async fn django() {
    python("django").await;
}

#[tokio::test]
async fn node_mysql2() {
    node("mysql2").await;
}

#[tokio::test]
async fn node_mysql2_prepared() {
    node("mysql2_prepared").await;
}

/// A server remembers whom it has let in by their whole password until it reloads its privileges, and a login from memory
/// is the fast one. So the proxy's first login behind a reload is a full one, and it has filled the memory if a login
/// behind it is fast.
#[tokio::test]
async fn the_proxy_logs_in_by_tls_by_rsa_key_and_fast() {
    let Some(db) = server().await else { return };
    let authority = format!("ca = \"{}\"", db.data().join("ca.pem").display());
    for (mode, secure) in [("verify-ca", true), ("disabled", false)] {
        db.direct().await.execute("FLUSH PRIVILEGES").await;
        // The second proxy's login is the fast one.
        for _ in 0..2 {
            let mut proxy = Proxy::in_front_of(&db).target_tls_unverified(mode);
            if secure {
                proxy = proxy.target_setting(&authority);
            }
            let proxy = proxy.start().await;
            let client = proxy.mysql().await;
            let cipher = &client.rows("SHOW SESSION STATUS LIKE 'Ssl_cipher'").await[0][1];
            assert_eq!(cipher.as_deref().is_some_and(|name| !name.is_empty()), secure, "{mode}: {cipher:?}");
            assert_eq!(client.scalar::<String>("SELECT current_user()").await, "app@%");
            assert_eq!(RawMySql::connect(&db.address()).await.steps, ["caching_sha2_password", "fast"]);
        }
    }
    // Another password in the proxy's secret is refused by the full login, not kept waiting.
    db.direct().await.execute("ALTER USER app2@'%' IDENTIFIED BY 'changed'; FLUSH PRIVILEGES").await;
    let proxy = Proxy::in_front_of(&db).target_tls_unverified("disabled").start().await;
    let app2 = proxy.address().user("app2", "app2-password");
    assert_eq!(proxy.mysql_refusal(&app2).await.0, 1045);
    assert_eq!(proxy.mysql().await.scalar::<u32>("SELECT 1").await, 1);
}

/// Clients that ask for session changes see those of the server, whatever the proxy has asked for itself.
#[tokio::test]
async fn changes_of_the_session_are_told_as_by_the_server() {
    const SCRIPT: &[&str] = &[
        "USE otherdb",
        "SET autocommit = 0",
        "SELECT v FROM t WHERE id = 1",
        "COMMIT",
        "SET autocommit = 1",
        "SET NAMES latin1",
        "SET NAMES utf8mb4",
        "SET @mine = 1",
        "SET time_zone = '+03:00', sql_mode = ''",
        "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED",
        "SET session_track_transaction_info = 'CHARACTERISTICS'",
        "START TRANSACTION READ ONLY",
        "SELECT v FROM t WHERE id = 2",
        "COMMIT",
        "SET session_track_state_change = ON",
        "SET @mine = 2",
        "CREATE TEMPORARY TABLE passing (n int)",
        "INSERT INTO passing VALUES (1)",
        "DROP TEMPORARY TABLE passing",
        "SET session_track_system_variables = '*', session_track_schema = OFF",
        "SET sort_buffer_size = 300000",
        "USE appdb",
        "SELECT nothing",
        "SELECT database(), @mine, @@sort_buffer_size, @@sql_mode, @@time_zone",
    ];
    let Some(db) = server().await else { return };
    let proxy = Proxy::in_front_of(&db).max_connections(1).start().await;
    let expected = told(&db.address(), SCRIPT).await;
    assert!(expected.contains("Variable("), "{expected}");
    same(&expected, &told(&proxy.address(), SCRIPT).await, "through the proxy");
    // The proxy asks for them for itself, on the same connection.
    let mut old = RawMySql::connect_with(&proxy.address(), capability::OLD).await;
    let seen = old.transcript(SCRIPT).await;
    assert!(seen.iter().all(|line| line.contains("changes: []") || line.starts_with("1054")), "{seen:?}");
}

/// Replies one a line, the changes in one order: that of a server differs from time to time.
async fn told(address: &Address, script: &[&str]) -> String {
    let mut client = RawMySql::connect(address).await;
    let mut said = String::new();
    for sql in script {
        for mut reply in client.query(sql).await {
            if let Reply::Done(done) | Reply::Rows(Rows { end: Ok(done), .. }) = &mut reply {
                // The proxy's connections have been told before, and say nothing new.
                if sql.starts_with("SET session_track") {
                    (done.changes, done.status) = (Vec::new(), 0);
                }
                done.changes.sort_by_key(|change| format!("{change:?}"));
            }
            writeln!(said, "{sql}: {reply:?}").unwrap();
        }
    }
    said
}

/// Two sessions take turns on one server connection, which is brought to the state of each.
#[tokio::test]
async fn what_a_session_has_set_goes_with_it() {
    let Some(db) = server().await else { return };
    let proxy = Proxy::in_front_of(&db).max_connections(1).start().await;
    let (one, other) = (proxy.mysql().await, proxy.mysql().await);
    let state = "SELECT @@time_zone, @@sql_mode, @@transaction_isolation, @@character_set_results, database(), @mine, \
                 @@sort_buffer_size, @@autocommit";
    let sets = [
        (
            &one,
            "SET time_zone = '+03:00', sql_mode = 'ANSI_QUOTES', @mine = 'one', sort_buffer_size = 300000",
        ),
        (&other, "SET time_zone = '-01:00', sql_mode = '', @mine = 'other'"),
        (&one, "SET SESSION TRANSACTION ISOLATION LEVEL SERIALIZABLE"),
        (&other, "USE otherdb"),
        (&other, "SET NAMES latin1"),
        (&one, "SET autocommit = 0"),
        (&one, "SET autocommit = 1"),
        (&other, "SET SESSION TRANSACTION ISOLATION LEVEL READ UNCOMMITTED"),
    ];
    for (client, sql) in sets {
        client.execute(sql).await;
    }
    let row = |values: [&str; 8]| [values.map(|value| Some(value.to_owned())).to_vec()];
    for _ in 0..2 {
        let seen = one.rows(state).await;
        let mode = ["+03:00", "ANSI_QUOTES", "SERIALIZABLE", "utf8mb4", "appdb", "one", "300000", "1"];
        assert_eq!(seen, row(mode));
        let seen = other.rows(state).await;
        let size: String = db.direct().await.scalar("SELECT @@sort_buffer_size").await;
        assert_eq!(seen, row(["-01:00", "", "READ-UNCOMMITTED", "latin1", "otherdb", "other", &size, "1"]));
    }
    assert_eq!(proxy.metric("pinion_pins_total", &[]).await, 0.0, "{}", proxy.log());
    let fresh = proxy.mysql().await;
    assert_eq!(fresh.rows("SELECT @mine").await, [[None]]);
    assert_eq!(fresh.scalar::<String>("SELECT database()").await, "appdb");
    until("no more than the one server connection", async || db.backends().await <= 1).await;
}

#[tokio::test]
async fn query_attributes_arrive() {
    let Some(db) = server().await else { return };
    // Distributions leave the component out of the server's own package.
    let component = "INSTALL COMPONENT 'file://component_query_attributes'";
    let readable = db.direct().await.try_execute(component).await.is_ok();
    let sql =
        if readable { "SELECT mysql_query_attribute_string('trace'), v FROM t" } else { "SELECT v FROM t" };
    let proxy = Proxy::in_front_of(&db).max_connections(2).start().await;
    let mut transcripts = Vec::new();
    for address in [db.address(), proxy.address()] {
        let mut client =
            RawMySql::connect_with(&address, capability::NEW | capability::QUERY_ATTRIBUTES).await;
        let mut said = String::new();
        for attributes in [&[("trace", "4711")] as &[_], &[], &[("other", ""), ("trace", "x'y;z")]] {
            writeln!(said, "{:?}", client.query_with(attributes, sql).await).unwrap();
        }
        assert_eq!(said.contains("4711"), readable, "{said}");
        let statement = client.prepare("SELECT v FROM t WHERE id = ? OR v = ? ORDER BY id").await.unwrap();
        for parameters in [[Some("2"), Some("one")], [None, Some("three")]] {
            writeln!(said, "{:?}", client.execute(statement.id, 0, &parameters).await).unwrap();
        }
        // Neither goes over to a client that sends none.
        let mut plain = RawMySql::connect(&address).await;
        writeln!(said, "{:?}", plain.query(sql).await).unwrap();
        transcripts.push(said);
    }
    same(&transcripts[0], &transcripts[1], "through the proxy");
}

#[tokio::test]
async fn column_definitions_can_be_left_out() {
    let Some(db) = server().await else { return };
    let proxy = Proxy::in_front_of(&db).max_connections(2).start().await;
    let mut transcripts = Vec::new();
    for address in [db.address(), proxy.address()] {
        let flags = capability::NEW | capability::OPTIONAL_RESULTSET_METADATA;
        let mut client = RawMySql::connect_with(&address, flags).await;
        assert_ne!(client.capabilities & capability::OPTIONAL_RESULTSET_METADATA, 0);
        let mut said = String::new();
        for (setting, definitions) in [("FULL", 2), ("NONE", 0), ("FULL", 2)] {
            client.ok(&format!("SET resultset_metadata = {setting}")).await;
            let replies = client.query("SELECT id, v FROM t").await;
            let [Reply::Rows(rows)] = replies.as_slice() else { panic!("{replies:?}") };
            assert_eq!((rows.columns.len(), rows.rows.len()), (definitions, 3), "{setting}");
            writeln!(said, "{replies:?}").unwrap();
            let statement = client.prepare("SELECT v FROM t WHERE id > ?").await.unwrap();
            writeln!(said, "{:?}", client.execute(statement.id, 0, &[Some("1")]).await).unwrap();
            // Another client has not asked for this.
            let mut plain = RawMySql::connect(&address).await;
            writeln!(said, "{:?}", plain.query("SELECT id, v FROM t").await).unwrap();
        }
        transcripts.push(said);
    }
    same(&transcripts[0], &transcripts[1], "through the proxy");
}

/// What a statement leaves for the next is one's own, though another client uses every connection in between, or the
/// question is refused; and whoever has asked once is answered from then on.
#[tokio::test]
async fn session_functions_answer_as_on_a_connection_of_ones_own() {
    const SCRIPT: &[&str] = &[
        "INSERT INTO TABLE (a) VALUES (1), (2)",
        "SELECT LAST_INSERT_ID()",
        "INSERT INTO TABLE VALUES (600, 1)",
        "SELECT LAST_INSERT_ID()",
        "UPDATE TABLE SET a = 9",
        "SELECT ROW_COUNT()",
        "SELECT SQL_CALC_FOUND_ROWS id FROM TABLE LIMIT 1",
        "SELECT FOUND_ROWS()",
        "SELECT 1/0",
        "SHOW WARNINGS",
        "SELECT * FROM nowhere",
        "SHOW ERRORS",
        "BEGIN",
        "UPDATE TABLE SET a = 10",
        "SELECT ROW_COUNT()",
        "COMMIT",
    ];
    let Some(db) = server().await else { return };
    let direct = db.direct().await;
    direct.execute("USE appdb").await;
    for table in ["others", "own", "twin"] {
        let columns = "(id int AUTO_INCREMENT PRIMARY KEY, a int) AUTO_INCREMENT";
        direct
            .execute(&format!(
                "CREATE TABLE {table} {columns} = {}",
                if table == "others" { 1000 } else { 50 }
            ))
            .await;
    }
    let proxy = Proxy::in_front_of(&db)
        .max_connections(2)
        .pool("connection_borrow_timeout = \"200ms\"")
        .start()
        .await;
    let neighbours = [proxy.mysql().await, proxy.mysql().await];
    let spoil = async || {
        // Where a connection is kept, one of them waits in vain.
        for neighbour in &neighbours {
            if neighbour.try_execute("START TRANSACTION READ WRITE").await.is_ok() {
                for sql in [
                    "INSERT INTO others (a) VALUES (1), (2), (3)",
                    "SELECT * FROM others LIMIT 5",
                    "SELECT 2/0",
                ] {
                    neighbour.execute(sql).await;
                }
            }
        }
        for neighbour in &neighbours {
            neighbour.try_execute("COMMIT").await.ok();
        }
    };
    let (client, twin) = (proxy.mysql().await, MySqlClient::connect(&db.address()).await.unwrap());
    let mut refused = 0;
    for text in SCRIPT {
        let expected = answer(&twin, text, "twin").await;
        let seen = answer(&client, text, "own").await;
        spoil().await;
        refused += u32::from(seen == "1105");
        assert!(seen == expected || seen == "1105", "{text}: {seen} instead of {expected}");
    }
    assert!(refused <= 2, "{refused} of {SCRIPT:?} were refused");
}

async fn answer(client: &MySqlClient, text: &str, table: &str) -> String {
    match client.try_rows(&text.replace("TABLE", table)).await {
        Ok(rows) => format!("{rows:?}").replace(table, "TABLE"),
        Err(error) => server_error(&error).code.to_string(),
    }
}
