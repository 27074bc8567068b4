//! Pinning filters as policy: for each reason to pin, and for each variable, a rule says what becomes of it.
//!
//! The configuration is described in the plugin's README.

use pinion_plugin::{CacheBy, Needs, Patterns, PinReason, PinVerdict, Plugin, Query, Subscription};

/// The plugin's configuration.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Asked in order; the first that fits decides. When none does, the next plugin and then the proxy's profile do.
    pub rules: Vec<Rule>,
}

/// What to do with pins of one sort. Every condition that is given must hold.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// What becomes of the pin.
    pub action: Action,
    /// Reasons it is about; `session-variable` alone when none are given.
    #[serde(default = "session_variable")]
    pub reasons: Vec<PinReason>,
    /// Variables, for `session-variable`, whatever their case.
    #[serde(default)]
    pub variables: Patterns,
    /// Database users.
    #[serde(default)]
    pub users: Patterns,
    /// Databases.
    #[serde(default)]
    pub databases: Patterns,
    /// What clients call themselves.
    #[serde(default)]
    pub applications: Patterns,
    /// The statement's text with its literals as `$n`, whatever its case.
    #[serde(default)]
    pub statements: Patterns,
    /// For `reject`: what the client is told.
    #[serde(default)]
    pub message: String,
    /// For `reject`: what the client could do instead.
    #[serde(default)]
    pub hint: String,
    /// For `reject`: the SQLSTATE, else the proxy's own.
    #[serde(default)]
    pub sqlstate: String,
    /// For `reject`: MySQL's error number, else the proxy's own.
    #[serde(default)]
    pub code: u16,
}

/// What becomes of a pin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// The session keeps its connection.
    Pin,
    /// The same `SET` is run again on whichever connection serves the session next.
    Replay,
    /// The session may lose what it set.
    Ignore,
    /// The client gets an error.
    Reject,
}

fn session_variable() -> Vec<PinReason> {
    vec![PinReason::SessionVariable]
}

impl Rule {
    /// Errors when the rule could not do what it says.
    fn check(&self) -> Result<(), String> {
        let of_variables = self.reasons == [PinReason::SessionVariable];
        if self.reasons.is_empty() {
            return Err("`reasons` is empty, so the rule never fits".to_owned());
        }
        if !self.variables.is_empty() && !of_variables {
            return Err("`variables` go with the reason `session-variable` alone".to_owned());
        }
        match self.action {
            Action::Replay | Action::Ignore if !of_variables => {
                Err("only `session-variable` can be replayed or ignored; the state of any other reason cannot be \
                     moved to another connection"
                    .to_owned())
            }
            Action::Reject if self.message.is_empty() => {
                Err("`reject` needs a `message`, which the client is told".to_owned())
            }
            Action::Pin | Action::Replay | Action::Ignore
                if !(self.message.is_empty()
                    && self.hint.is_empty()
                    && self.sqlstate.is_empty()
                    && self.code == 0) =>
            {
                Err("`message`, `hint`, `sqlstate` and `code` go with `reject` alone".to_owned())
            }
            Action::Reject if !is_sqlstate(&self.sqlstate) => {
                Err(format!("`sqlstate` {:?} is not five upper-case letters or digits", self.sqlstate))
            }
            Action::Pin | Action::Replay | Action::Ignore | Action::Reject => Ok(()),
        }
    }

    fn fits(&self, query: &Query, reason: PinReason, subject: &str) -> bool {
        self.reasons.contains(&reason)
            && (self.variables.is_empty() || self.variables.match_any_ignoring_case(subject))
            && self.users.allow(query.user())
            && self.databases.allow(query.database())
            && self.applications.allow(query.application())
            && (self.statements.is_empty() || self.statements.match_any_ignoring_case(query.normalised()))
    }

    fn verdict(&self) -> PinVerdict {
        match self.action {
            Action::Pin => PinVerdict::Pin,
            Action::Replay => PinVerdict::Replay,
            Action::Ignore => PinVerdict::Ignore,
            Action::Reject => {
                let rejection = PinVerdict::reject(&self.message).hint(&self.hint);
                rejection.sqlstate(&self.sqlstate).code(self.code)
            }
        }
    }
}

/// Empty for the proxy's own.
fn is_sqlstate(text: &str) -> bool {
    text.is_empty() || (text.len() == 5 && text.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit()))
}

/// The plugin.
#[derive(Debug)]
pub struct PinFilter {
    rules: Vec<Rule>,
}

impl Plugin for PinFilter {
    type Config = Config;

    fn new(config: Config) -> Result<Self, String> {
        for (at, rule) in config.rules.iter().enumerate() {
            rule.check().map_err(|why| format!("config.rules[{at}]: {why}"))?;
        }
        Ok(Self { rules: config.rules })
    }

    fn subscriptions(&self) -> Vec<Subscription> {
        // Reason and variable are part of every cached pin verdict; the rest is what some rule looks at. The kind costs
        // nothing and makes the set non-empty, which is what switches caching on.
        let mut fields = CacheBy::KIND;
        for rule in &self.rules {
            for (patterns, field) in [
                (&rule.users, CacheBy::USER),
                (&rule.databases, CacheBy::DATABASE),
                (&rule.applications, CacheBy::APPLICATION),
                (&rule.statements, CacheBy::DIGEST),
            ] {
                if !patterns.is_empty() {
                    fields |= field;
                }
            }
        }
        vec![Subscription::on_pin().cache_by(fields)]
    }

    fn needs(&self) -> Needs {
        let looks_at_text = self.rules.iter().any(|rule| !rule.statements.is_empty());
        if looks_at_text { Needs::NORMALISED } else { Needs::NONE }
    }

    fn on_pin(&mut self, query: &Query, reason: PinReason, subject: &str) -> PinVerdict {
        let rule = self.rules.iter().find(|rule| rule.fits(query, reason, subject));
        rule.map_or(PinVerdict::Pass, Rule::verdict)
    }

    fn self_test() -> &'static str {
        include_str!("../vectors.toml")
    }
}

pinion_plugin::export!(PinFilter);

#[cfg(test)]
mod tests {
    use pinion_plugin::{
        Dialect, StatementKind, serde_json,
        testing::{self, Statement, Tested},
    };

    use super::*;

    /// The plugin with the rules of a file that stands beside it, which shows a whole `[[proxy.plugin]]`.
    fn shipped(text: &str) -> Tested<PinFilter> {
        let file: toml::Table = toml::from_str(text).unwrap();
        let plugin = &file["proxy"]["plugin"][0];
        assert_eq!(plugin["name"].as_str(), Some("pin-filter"));
        testing::start(serde_json::to_value(&plugin["config"]).unwrap()).unwrap()
    }

    fn set(plugin: &mut Tested<PinFilter>, variable: &str) -> PinVerdict {
        let statement = Statement::set(&format!("SET {variable} = $1"), variable);
        plugin.on_pin(&statement, PinReason::SessionVariable, variable)
    }

    #[test]
    fn exclude_variable_sets_ignores_variables_and_nothing_else() {
        let mut plugin = shipped(include_str!("../exclude-variable-sets.toml"));
        assert_eq!(set(&mut plugin, "search_path"), PinVerdict::Ignore);
        for reason in PinReason::ALL.iter().filter(|reason| **reason != PinReason::SessionVariable) {
            assert_eq!(plugin.on_pin(&Statement::select("SELECT 1"), *reason, ""), PinVerdict::Pass);
        }
    }

    #[test]
    fn the_safe_list_replays_what_is_harmless_and_pins_the_rest() {
        let mut plugin = shipped(include_str!("../safe.toml"));
        for variable in ["application_name", "timezone", "TimeZone", "statement_timeout", "enable_seqscan"] {
            assert_eq!(set(&mut plugin, variable), PinVerdict::Replay, "{variable}");
        }
        for variable in ["sort_buffer_size", "innodb_lock_wait_timeout", "optimizer_switch"] {
            assert_eq!(set(&mut plugin, variable), PinVerdict::Replay, "{variable}");
        }
        for variable in
            ["search_path", "row_security", "app.tenant", "session_replication_role", "sql_mode", "@tenant"]
        {
            assert_eq!(set(&mut plugin, variable), PinVerdict::Pin, "{variable}");
        }
        assert!(plugin.last_verdict_is_cacheable());
        let role = Statement::set("SET ROLE x", "role");
        assert_eq!(plugin.on_pin(&role, PinReason::SessionIdentity, ""), PinVerdict::Pass);
    }

    #[test]
    fn mysql_variables_are_matched_whatever_their_case() {
        let mut plugin = testing::start_toml::<PinFilter>(
            r#"
            [[rules]]
            variables = ["Sort_Buffer_Size", "transaction_*"]
            action = "replay"

            [[rules]]
            variables = ["@Trace*"]
            action = "ignore"

            [[rules]]
            reasons = ["xa", "handler", "table-lock", "session-function", "multi-statement"]
            statements = ["xa *", "handler *", "lock tables *", "select last_insert_id()", "set @*"]
            action = "reject"
            message = "not through the proxy"
            "#,
        )
        .unwrap();
        let mut verdict = |text: &str, reason, subject: &str| {
            let kind = if reason == PinReason::SessionVariable {
                StatementKind::Session
            } else {
                StatementKind::Other
            };
            let statement = Statement::new(kind, text).dialect(Dialect::Mysql);
            plugin.on_pin(&statement, reason, subject)
        };
        let set = PinReason::SessionVariable;
        let replay = verdict("SET SESSION sort_buffer_size = ?", set, "sort_buffer_size");
        assert_eq!(replay, PinVerdict::Replay);
        let next = verdict("SET TRANSACTION READ ONLY", set, "transaction_read_only");
        assert_eq!(next, PinVerdict::Replay);
        assert_eq!(verdict("SET @trace_id = @x", set, "@trace_id"), PinVerdict::Ignore);
        assert_eq!(verdict("SELECT @v := ?", set, ""), PinVerdict::Pass);
        assert_eq!(verdict("SET timestamp = ?", set, "timestamp"), PinVerdict::Pass);
        for (text, reason) in [
            ("xa start ?", PinReason::Xa),
            ("handler t open", PinReason::Handler),
            ("lock tables t read", PinReason::TableLock),
            ("select last_insert_id()", PinReason::SessionFunction),
            ("set @a = ?; select @a", PinReason::MultiStatement),
        ] {
            assert!(verdict(text, reason, "").rejection().is_some(), "{text}");
        }
    }

    #[test]
    fn every_condition_has_to_hold() {
        let mut plugin = testing::start_toml::<PinFilter>(
            r#"
            [[rules]]
            variables = ["app.*"]
            users = ["web"]
            databases = ["shop*"]
            applications = ["checkout"]
            statements = ["reset *", "set app.tenant *"]
            action = "replay"
            "#,
        )
        .unwrap();
        let fitting = Statement::set("SET app.tenant = $1", "app.tenant")
            .user("web")
            .database("shop_eu")
            .application("checkout");
        let mut verdict =
            |statement: Statement, variable| plugin.on_pin(&statement, PinReason::SessionVariable, variable);
        assert_eq!(verdict(fitting.clone(), "app.tenant"), PinVerdict::Replay);
        assert_eq!(verdict(fitting.clone(), "other"), PinVerdict::Pass);
        assert_eq!(verdict(fitting.clone().user("batch"), "app.tenant"), PinVerdict::Pass);
        assert_eq!(verdict(fitting.clone().database("stock"), "app.tenant"), PinVerdict::Pass);
        assert_eq!(verdict(fitting.clone().application("x"), "app.tenant"), PinVerdict::Pass);
        assert_eq!(verdict(fitting.normalised("SET app.x TO $1"), "app.tenant"), PinVerdict::Pass);
    }

    #[test]
    fn the_first_rule_that_fits_decides_and_a_rejection_carries_its_advice() {
        let mut plugin = testing::start_toml::<PinFilter>(
            r#"
            rules = [
                { users = ["migrations"], reasons = ["advisory-lock", "temporary-table"], action = "pin" },
                { reasons = ["advisory-lock"], action = "reject", message = "no locks here", hint = "ask", sqlstate = "0A000", code = 1235 },
            ]
            "#,
        )
        .unwrap();
        let lock = Statement::select("SELECT pg_advisory_lock($1)");
        let verdict = plugin.on_pin(&lock, PinReason::AdvisoryLock, "");
        let rejection = verdict.rejection().unwrap();
        assert_eq!(
            (&*rejection.message, &*rejection.hint, &*rejection.sqlstate, rejection.code),
            ("no locks here", "ask", "0A000", 1235)
        );
        assert!(!plugin.last_verdict_is_cacheable());
        assert_eq!(plugin.on_pin(&lock.user("migrations"), PinReason::AdvisoryLock, ""), PinVerdict::Pin);
    }

    #[test]
    fn rules_that_cannot_work_are_refused_by_their_place() {
        let refused =
            |rules: &str| testing::start_toml::<PinFilter>(&format!("rules = [{rules}]")).unwrap_err();
        for (rule, complaint) in [
            (r#"{ action = "ignroe" }"#, "config.rules[0].action: unknown variant `ignroe`"),
            (r#"{ action = "pin", variable = ["x"] }"#, "config.rules[0].variable: unknown field `variable`"),
            (r#"{ action = "pin", reasons = ["temp-table"] }"#, "unknown variant `temp-table`"),
            (r#"{ action = "pin" }, { action = "ignore", reasons = ["listen"] }"#, "config.rules[1]: only"),
            (r#"{ action = "pin", code = 1 }"#, "go with `reject` alone"),
            (r#"{ action = "reject" }"#, "needs a `message`"),
            (r#"{ action = "pin", hint = "x" }"#, "go with `reject` alone"),
            (r#"{ action = "reject", message = "x", sqlstate = "abc" }"#, "not five upper-case"),
            (r#"{ action = "pin", reasons = ["listen"], variables = ["x"] }"#, "`variables` go with"),
            (r#"{ action = "pin", reasons = [] }"#, "never fits"),
        ] {
            let error = refused(rule);
            assert!(error.contains(complaint), "{rule}: {error}");
        }
        assert!(testing::start_toml::<PinFilter>("").unwrap_err().contains("missing field `rules`"));
    }
}
