//! `pin-filter` as it is shipped: what its two rule sets promise, and rules by variable, user and statement.
#![allow(clippy::unwrap_used)]

use std::{fs, path::Path};

use pinion_tests::{Plugin, Proxy, ProxyBuilder, Server};

fn with(pg: &Server, rules: &str) -> ProxyBuilder {
    let plugin = Plugin::shipped("pin-filter").setting("on_failure = \"closed\"").setting(rules);
    Proxy::in_front_of(pg).max_connections(1).plugin(plugin)
}

/// One of the rule sets beside the plugin.
fn shipped(name: &str) -> String {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../plugins/pin-filter").join(name);
    let text = fs::read_to_string(file).unwrap();
    // The section's head is written by the harness.
    text[text.find("[[proxy.plugin.config.rules]]").unwrap()..].to_owned()
}

async fn pins(proxy: &Proxy) -> f64 {
    proxy.metric("pinion_pins_total", &[]).await
}

/// Row by row what `session_pinning_filters = ["EXCLUDE_VARIABLE_SETS"]` does, in both profiles.
#[tokio::test]
async fn exclude_variable_sets_is_what_the_built_in_filter_is() {
    let pg = Server::postgres().start().await;
    for profile in ["smart", "rds"] {
        let built_in = Proxy::in_front_of(&pg)
            .max_connections(1)
            .profile(profile)
            .pool("session_pinning_filters = [\"EXCLUDE_VARIABLE_SETS\"]")
            .start()
            .await;
        let plugin = with(&pg, &shipped("exclude-variable-sets.toml")).profile(profile).start().await;
        for statement in [
            "SET application_name = 'x'",
            "SET search_path = app",
            "SET SESSION CHARACTERISTICS AS TRANSACTION READ WRITE",
            "SELECT set_config('work_mem', '5MB', false)",
            "SET work_mem = '7MB'; SELECT 1",
            "SELECT pg_advisory_lock(1)",
        ] {
            let mut seen = Vec::new();
            for proxy in [&built_in, &plugin] {
                let client = proxy.connect().await;
                let before = pins(proxy).await;
                client.execute(statement).await;
                let pinned = pins(proxy).await - before;
                client.close().await;
                // Nobody sees what the other has set.
                let next = proxy.connect().await;
                assert_eq!(next.scalar::<String>("SHOW work_mem").await, "4MB", "{statement}");
                next.close().await;
                seen.push(pinned);
            }
            assert_eq!(seen[0], seen[1], "{profile}: {statement}");
        }
    }
}

#[tokio::test]
async fn the_safe_rules_replay_what_they_list_and_pin_the_rest() {
    let pg = Server::postgres().start().await;
    let proxy = with(&pg, &shipped("safe.toml")).start().await;
    let (a, b) = (proxy.connect().await, proxy.connect().await);
    a.execute("SET application_name = 'a'").await;
    a.execute("SET TimeZone = 'Asia/Tokyo'").await;
    a.execute("SET statement_timeout = '11s'").await;
    b.execute("SET DateStyle = 'SQL, DMY'").await;
    for _ in 0..3 {
        assert_eq!(a.scalar::<String>("SHOW application_name").await, "a");
        assert_eq!(a.scalar::<String>("SHOW TimeZone").await, "Asia/Tokyo");
        assert_eq!(a.scalar::<String>("SHOW statement_timeout").await, "11s");
        assert_eq!(b.scalar::<String>("SHOW DateStyle").await, "SQL, DMY");
        assert_ne!(b.scalar::<String>("SHOW TimeZone").await, "Asia/Tokyo");
        assert_eq!(b.scalar::<String>("SHOW statement_timeout").await, "0");
    }
    assert_eq!(pins(&proxy).await, 0.0, "{}", proxy.log());
    a.execute("SET search_path = 'elsewhere'").await;
    assert_eq!(pins(&proxy).await, 1.0);
    assert_eq!(a.scalar::<String>("SHOW search_path").await, "elsewhere");
}

#[tokio::test]
async fn rules_look_at_user_application_and_statement() {
    let pg = Server::postgres().start().await;
    let rules = r#"
[[proxy.plugin.config.rules]]
variables = ["work_mem"]
users = ["app2"]
action = "reject"
message = "app2 has memory enough"
hint = "ask for less"
sqlstate = "PF001"

[[proxy.plugin.config.rules]]
reasons = ["advisory-lock"]
statements = ["select pg_advisory_lock(*"]
action = "reject"
message = "use pg_advisory_xact_lock"

[[proxy.plugin.config.rules]]
applications = ["batch*"]
action = "ignore"
"#;
    let proxy = with(&pg, rules).start().await;
    let app2 = proxy.connect_as("app2").await;
    let error = app2.try_execute("SET work_mem = '8MB'").await.unwrap_err();
    let error = error.as_db_error().unwrap();
    assert_eq!((error.code().code(), error.message()), ("PF001", "app2 has memory enough"));
    assert_eq!(error.hint(), Some("ask for less"));
    assert_eq!(app2.sqlstate("SELECT pg_advisory_lock(5)").await, "42501");
    assert_eq!(app2.scalar::<String>("SELECT pg_try_advisory_lock(5)").await, "t");
    app2.close().await;

    let batch = pinion_tests::Client::connect_with(&proxy.address(), |config| {
        config.application_name("batch-7");
    })
    .await
    .unwrap();
    let before = pins(&proxy).await;
    batch.execute("SET work_mem = '8MB'").await;
    assert_eq!(pins(&proxy).await, before);
    batch.close().await;
    // No rule fits: the profile decides.
    let app = proxy.connect().await;
    app.execute("BEGIN; DECLARE c CURSOR WITH HOLD FOR SELECT 1; COMMIT").await;
    assert_eq!(pins(&proxy).await, before + 1.0);
}
