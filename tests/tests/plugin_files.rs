//! The `.wasm` files that `cargo xtask plugins` makes are what they should be, and the contract they were built from
//! has not changed under those who built theirs before.
#![allow(clippy::unwrap_used)]

use std::{collections::BTreeSet, fs, path::Path};

use pinion_tests::{Plugin, Proxy, Server, until};
use wit_component::{ComponentEncoder, DecodedWasm, decode};

/// Imports and exports of the component that a host makes of a file, as `package/interface@version`.
fn interfaces(file: &str) -> (BTreeSet<String>, BTreeSet<String>) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/plugins").join(file);
    let module = fs::read(&path).unwrap_or_else(|error| {
        panic!("{}: {error}; `cargo xtask plugins` builds it, `cargo xtask test` too", path.display())
    });
    let component = ComponentEncoder::default()
        .module(&module)
        .and_then(|encoder| encoder.validate(true).encode())
        .unwrap_or_else(|error| panic!("{file} does not make a component: {error:#}"));
    let DecodedWasm::Component(resolve, world) = decode(&component).unwrap() else { panic!("{file}") };
    let world = &resolve.worlds[world];
    let imports = world.imports.keys().map(|key| resolve.name_world_key(key)).collect();
    let exports = world.exports.keys().map(|key| resolve.name_world_key(key)).collect();
    (imports, exports)
}

fn contract(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| format!("pinion:policy/{name}@0.1.0")).collect()
}

#[test]
fn plugins_are_components_of_the_contract() {
    let possible = contract(&["types", "log", "names", "metrics", "store", "clock", "audit"]);
    let hooks = contract(&["lifecycle", "on-query", "on-route", "on-pin", "on-events"]);
    for file in [
        "pin_filter.wasm",
        "rw_split.wasm",
        "audit.wasm",
        "fixtures/hostile.wasm",
        "fixtures/versioned_v1.wasm",
        "fixtures/versioned_v2.wasm",
        "fixtures/failing_self_test.wasm",
    ] {
        let (imports, exports) = interfaces(file);
        assert!(imports.is_subset(&possible), "{file} imports {imports:?}");
        assert_eq!(exports, hooks, "{file}");
    }
}

#[test]
fn fixtures_differ_from_the_contract_as_they_should() {
    let (imports, exports) = interfaces("fixtures/older.wasm");
    assert_eq!(exports, contract(&["lifecycle", "on-query"]));
    assert_eq!(imports, contract(&["types", "log"]));
    let (imports, exports) = interfaces("fixtures/newer_break.wasm");
    assert_eq!(exports, BTreeSet::from(["pinion:policy/lifecycle@0.2.0".to_owned()]));
    assert_eq!(imports, BTreeSet::from(["pinion:policy/log@0.2.0".to_owned()]));
    let (imports, _) = interfaces("fixtures/wasi_user.wasm");
    assert!(imports.contains("wasi:random/random@0.2.0"), "{imports:?}");
    assert!(imports.contains("wasi:sockets/instance-network@0.2.0"), "{imports:?}");
    let (imports, _) = interfaces("fixtures/unknown_import.wasm");
    assert!(imports.contains("acme:thing/api"), "{imports:?}");
}

/// Interfaces of a WIT text by name, each as its lines without comments and white space at the ends.
fn blocks(text: &str) -> Vec<(String, Vec<String>)> {
    let mut blocks: Vec<(String, Vec<String>)> = Vec::new();
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("//")) {
        if let Some(name) = line.strip_prefix("interface ").or_else(|| line.strip_prefix("world ")) {
            blocks.push((name.trim_end_matches(" {").to_owned(), Vec::new()));
        } else if let Some((_, lines)) = blocks.last_mut() {
            lines.push(line.to_owned());
        }
    }
    blocks
}

#[test]
fn what_was_published_is_still_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let read = |path: &str| fs::read_to_string(root.join(path)).unwrap();
    let published = blocks(&read("tests/fixtures/wit-0.1.0/policy.wit"));
    let now = blocks(&read("plugin-sdk/wit/policy.wit"));
    for (name, old) in &published {
        let (_, new) =
            now.iter().find(|(other, _)| other == name).unwrap_or_else(|| panic!("{name} is gone"));
        match name.as_str() {
            // A plugin calls these: more functions hurt nobody.
            "log" | "names" | "metrics" | "store" | "clock" | "audit" | "plugin" => {
                for line in old {
                    assert!(new.contains(line), "{name}: {line}");
                }
            }
            // Types, and what a plugin exports, are compared one to one when it is loaded.
            _ => assert_eq!(old, new, "{name} has changed"),
        }
    }
}

/// Loading a plugin runs its own test vectors, with the host's grammar behind them.
#[tokio::test]
async fn shipped_plugins_pass_their_own_test_vectors() {
    let pg = Server::postgres().start().await;
    let plugin = |name, grants: &[&str], config| Plugin::shipped(name).grants(grants).setting(config);
    // Configurations that the vectors are not about.
    let proxy = Proxy::in_front_of(&pg)
        .plugin(plugin("pin-filter", &[], "config = { rules = [{ action = \"ignore\" }] }"))
        .plugin(plugin(
            "rw-split",
            &["store"],
            "config = { sticky_after_write = \"1s\", endpoints = [\"x\"] }",
        ))
        .plugin(plugin("audit", &["log"], "config = { sample = 0.5, users = [\"x*\"] }"))
        .plugin(Plugin::fixture("failing-self-test"))
        .start()
        .await;
    for (plugin, state) in [
        ("pin-filter", "running"),
        ("rw-split", "running"),
        ("audit", "running"),
        ("failing-self-test", "failed"),
    ] {
        let state = [("plugin", plugin), ("state", state)];
        until(&format!("{plugin} is as it should be\n{}", proxy.log()), async || {
            proxy.metric("pinion_plugin_state", &state).await == 1.0
        })
        .await;
    }
    assert!(proxy.log().contains("this plugin never rejects"), "{}", proxy.log());
}
