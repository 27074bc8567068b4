//! Write a policy plugin for [Pinion](https://docs.rs/pinion): one type, the hooks it wants, one line that exports it.
//!
//! ```
//! use pinion_plugin::{Plugin, Query, QueryVerdict, StatementKind, Subscription};
//!
//! #[derive(serde::Deserialize)]
//! #[serde(deny_unknown_fields)]
//! struct Config {
//!     /// Users who may change the schema.
//!     owners: Vec<String>,
//! }
//!
//! struct NoDdl(Config);
//!
//! impl Plugin for NoDdl {
//!     type Config = Config;
//!
//!     fn new(config: Config) -> Result<Self, String> {
//!         Ok(Self(config))
//!     }
//!
//!     fn subscriptions(&self) -> Vec<Subscription> {
//!         vec![Subscription::on_query().kinds([StatementKind::Ddl])]
//!     }
//!
//!     fn on_query(&mut self, query: &Query) -> QueryVerdict {
//!         if self.0.owners.iter().any(|owner| owner == query.user()) {
//!             return QueryVerdict::Pass;
//!         }
//!         QueryVerdict::reject("schema changes go through migrations").hint("ask the owner of the schema")
//!     }
//! }
//!
//! pinion_plugin::export!(NoDdl);
//!
//! // In `cargo test`, as plain Rust:
//! use pinion_plugin::testing::{self, Statement};
//! let mut plugin = testing::start_toml::<NoDdl>(r#"owners = ["migrations"]"#).unwrap();
//! assert!(plugin.on_query(&Statement::ddl("DROP TABLE orders").user("app")).is_reject());
//! assert_eq!(plugin.on_query(&Statement::ddl("DROP TABLE orders").user("migrations")), QueryVerdict::Pass);
//! ```
//!
//! Built for `wasm32-unknown-unknown` the crate is a plugin; built for anything else it is an ordinary library, the
//! [`export!`] line does nothing, and what the host would offer ([`log`], [`metrics`], [`store`], [`clock`],
//! [`audit`]) is played by [`testing`].
//!
//! What a plugin may keep: one instance serves one thread of the proxy and is thrown away when a call traps, so fields
//! of the plugin are a cache. What all instances must agree on belongs into the [`store`].
//!
//! The contract itself is the WIT package `pinion:policy` in `wit/policy.wit`; this crate gives each word of it a Rust
//! name. Where the contract says what a hook means, the documentation here does not say it differently.

pub mod audit;
pub mod clock;
pub mod duration;
mod event;
mod flags;
pub mod log;
pub mod metrics;
mod pattern;
mod query;
mod registration;
pub mod store;
mod verdict;
mod words;

#[cfg(target_arch = "wasm32")]
#[doc(hidden)]
pub mod bindings;
#[cfg(target_arch = "wasm32")]
mod guest;
#[cfg(target_arch = "wasm32")]
#[path = "host/wasm.rs"]
mod host;
#[cfg(not(target_arch = "wasm32"))]
#[path = "host/fake.rs"]
mod host;
#[cfg(not(target_arch = "wasm32"))]
pub mod testing;

pub use serde_json;

pub use crate::{
    event::{Completion, Decision, Event, SessionEvent},
    pattern::{Pattern, Patterns},
    query::Query,
    registration::{CacheBy, Hook, Needs, Subscription},
    verdict::{PinVerdict, QueryVerdict, Rejection, RouteVerdict},
    words::{Dialect, PinReason, Role, StatementKind},
};

/// A policy plugin. Only [`new`](Self::new) and [`subscriptions`](Self::subscriptions) are compulsory; the hooks that
/// are subscribed to are the ones to write.
pub trait Plugin: Sized + 'static {
    /// The plugin's `config` table in the proxy's configuration. Give it `#[serde(deny_unknown_fields)]`, so that a
    /// misspelt key refuses the plugin instead of being overlooked. [`NoConfig`] for none.
    type Config: serde::de::DeserializeOwned;

    /// Makes an instance. Runs once for each thread of the proxy, and again after a trap; metrics are registered here.
    /// An error is shown to the operator and refuses the plugin, the old one keeps running.
    fn new(config: Self::Config) -> Result<Self, String>;

    /// Which calls are wanted, asked once after [`new`](Self::new). The same configuration must give the same answer.
    fn subscriptions(&self) -> Vec<Subscription>;

    /// What the plugin wants to see of a statement beyond the flat facts. Each need costs time on every call, so take
    /// as few as will do.
    fn needs(&self) -> Needs {
        Needs::NONE
    }

    /// Before a statement goes to a server.
    fn on_query(&mut self, _query: &Query) -> QueryVerdict {
        QueryVerdict::Pass
    }

    /// Before a server connection is borrowed: once a transaction, or once a request outside of one.
    fn on_route(&mut self, _query: &Query) -> RouteVerdict {
        RouteVerdict::Pass
    }

    /// Before a statement makes the session keep its server connection. `subject` is the variable's name for
    /// [`PinReason::SessionVariable`] and empty otherwise.
    fn on_pin(&mut self, _query: &Query, _reason: PinReason, _subject: &str) -> PinVerdict {
        PinVerdict::Pass
    }

    /// What has happened, in batches and in order, after clients have had their answers. One instance sees everything.
    fn on_events(&mut self, _events: &[Event]) {}

    /// Test vectors that the host runs before it puts the plugin to work, as TOML; `include_str!("../vectors.toml")`
    /// is the usual answer, and the default is none.
    fn self_test() -> &'static str {
        ""
    }
}

/// The configuration of a plugin that has none: an empty table, and any key in it is an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NoConfig {}

/// Makes a type that implements [`Plugin`] the plugin of this crate. Once per crate; does nothing unless the target is
/// WebAssembly, but see that the type fits. The plugin's name and version are the crate's.
#[macro_export]
macro_rules! export {
    ($plugin:ty) => {
        #[cfg(not(target_arch = "wasm32"))]
        const _: fn() = $crate::__private::is_a_plugin::<$plugin>;

        #[cfg(target_arch = "wasm32")]
        const _: () = {
            impl $crate::__private::Named for $plugin {
                const NAME: &'static str = env!("CARGO_PKG_NAME");
                const VERSION: &'static str = env!("CARGO_PKG_VERSION");
            }
            type Component = $crate::__private::Component<$plugin>;
    $crate::__private::export_component!(Component with_types_in $crate::bindings);
        };
    };
}

/// What [`export!`] needs to name.
#[doc(hidden)]
pub mod __private {
    #[cfg(target_arch = "wasm32")]
    pub use crate::{
        bindings::__export_component as export_component,
        guest::{Component, Named},
    };

    /// Natively nothing calls a plugin; naming it keeps the compiler from calling all of it dead code.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn is_a_plugin<P: crate::Plugin>() {}
}

/// Reads a configuration from JSON. The error names the setting by its path, not by a place in JSON that no operator
/// wrote.
fn read_config<C: serde::de::DeserializeOwned>(json: &str) -> Result<C, String> {
    let mut reader = serde_json::Deserializer::from_str(json);
    serde_path_to_error::deserialize(&mut reader).map_err(|error| {
        let path = error.path().to_string();
        let cause = error.inner().to_string();
        let cause = cause.rfind(" at line ").map_or(cause.as_str(), |end| &cause[..end]);
        if path == "." { format!("config: {cause}") } else { format!("config.{path}: {cause}") }
    })
}

/// The plugin in the README, which must compile.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Config {
        #[serde(default)]
        rules: Vec<Rule>,
    }

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only read from configuration")]
    struct Rule {
        kind: StatementKind,
    }

    #[test]
    fn config_errors_name_the_setting_and_what_is_allowed() {
        let read = |text| read_config::<Config>(text).unwrap_err();
        assert_eq!(read(r#"{"rule": []}"#), "config.rule: unknown field `rule`, expected `rules`");
        assert_eq!(read(r#"{"rules": [{}]}"#), "config.rules[0]: missing field `kind`");
        let wrong = read(r#"{"rules": [{"kind": "write"}, {"kind": "wirte"}]}"#);
        assert!(
            wrong.starts_with("config.rules[1].kind: unknown variant `wirte`, expected one of"),
            "{wrong}"
        );
        assert!(read_config::<Config>("{}").unwrap().rules.is_empty());
    }
}
