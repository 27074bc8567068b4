//! What statements change of a session: by their text, and by the server's report.

use super::{
    super::{
        super::{Facts, PinReason, StateChange, StatementKind},
        classify::{self, Assignment, Details, Scope},
        codec::{self, SessionChange, put_lenenc_bytes},
        left::Nature,
        query::quoted,
        server::MyServer,
    },
    MyTracker,
    deferred::OF_TRANSACTIONS,
    held::Holds,
};

/// What is known of a statement under way beside what the server says.
#[derive(Debug, Default)]
pub(super) struct Explained {
    /// That something of the session changes is no surprise: pins hold it, or the text says it.
    pub(super) state: bool,
    /// It runs code that no text shows.
    pub(super) taints: bool,
    /// It makes settings in a way that is not followed.
    pub(super) unsettles: bool,
    /// Its settings end with it, though the server reports them as if they stayed.
    pub(super) passing: bool,
    /// Settings made by the text itself.
    pub(super) made: Vec<(Box<str>, Box<str>)>,
    /// Variables that the server reports and `made` stands for.
    pub(super) covers: &'static [&'static str],
    /// What it is to session functions.
    pub(super) nature: Nature,
    /// What it does to what the session holds.
    pub(super) holds: Holds,
}

/// Of changes of its session, what a client has asked for beyond what servers tell by default.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Asks {
    pub(super) variables: bool,
    pub(super) state: bool,
    pub(super) transactions: bool,
}

impl Asks {
    pub(super) fn note(&mut self, variable: &str) {
        match variable {
            "session_track_system_variables" => self.variables = true,
            "session_track_state_change" => self.state = true,
            "session_track_transaction_info" => self.transactions = true,
            _ => {}
        }
    }
}

/// What `SET NAMES` and `SET CHARACTER SET` change, collation included, which servers do not all report.
pub(super) const CHARACTER_SET: &[&str] =
    &["character_set_client", "character_set_connection", "character_set_results", "collation_connection"];

/// True where the server reports nothing of what such a statement may change.
pub(super) fn is_untold(facts: &Facts, server: &MyServer) -> bool {
    let kinds =
        [StatementKind::Session, StatementKind::Routine, StatementKind::Other, StatementKind::Unknown];
    !server.tracks && (facts.changes_settings || facts.taints || kinds.contains(&facts.kind))
}

/// What a session changes without anybody having to make it again.
pub(super) const UNTRACKED: &[&str] =
    &["last_gtid", "warning_count", "error_count", "rand_seed1", "rand_seed2"];

/// Variables that change nothing of what a text means when it is prepared.
const HARMLESS: &[&str] = &["autocommit", "time_zone"];

/// Variables that count for the next statement only, or whose value is a moment: not to be made again elsewhere.
pub(super) const MOMENTARY: &[&str] =
    &["timestamp", "insert_id", "last_insert_id", "identity", "pseudo_thread_id", "gtid_seq_no"];

/// What is set on every connection, so that who sets it too changes nothing.
pub(super) const OURS: &[(&str, &str)] = &[
    ("session_track_schema", "ON"),
    ("session_track_state_change", "ON"),
    ("session_track_system_variables", "*"),
    ("session_track_transaction_info", "CHARACTERISTICS"),
];

/// Of changes of a session, what a client is told that has asked for no more: what servers report by default.
pub(super) const USUAL: [&[u8]; 5] = [
    b"autocommit",
    b"character_set_client",
    b"character_set_connection",
    b"character_set_results",
    b"time_zone",
];

/// See [`USUAL`]; the database too, and what the client asks for.
pub(super) fn told_changes(changes: &[SessionChange<'_>], asks: Asks) -> Vec<u8> {
    let mut told = Vec::new();
    for change in changes {
        let mut entry = Vec::new();
        let kind = match change {
            SessionChange::Variable { name, value } if asks.variables || USUAL.contains(name) => {
                put_lenenc_bytes(&mut entry, name);
                put_lenenc_bytes(&mut entry, value);
                codec::track::SYSTEM_VARIABLES
            }
            SessionChange::Schema(name) => {
                put_lenenc_bytes(&mut entry, name);
                codec::track::SCHEMA
            }
            SessionChange::State(changed) if asks.state => {
                // With no length of its own before it, as servers have it.
                entry.extend_from_slice(changed);
                codec::track::STATE_CHANGE
            }
            SessionChange::Characteristics(statements) if asks.transactions => {
                put_lenenc_bytes(&mut entry, statements);
                codec::track::TRANSACTION_CHARACTERISTICS
            }
            SessionChange::Transaction(state) if asks.transactions => {
                put_lenenc_bytes(&mut entry, state);
                codec::track::TRANSACTION_STATE
            }
            _ => continue,
        };
        told.push(kind);
        put_lenenc_bytes(&mut told, &entry);
    }
    told
}

/// A constant of a client's text, to be read alike in every `sql_mode` and character set; `None` when it is not.
pub(super) fn in_any_mode(value: &[u8]) -> Option<String> {
    let value = std::str::from_utf8(value).ok().filter(|value| value.is_ascii() && !value.contains('\\'))?;
    match value.strip_prefix('"').and_then(|value| value.strip_suffix('"')) {
        _ if !value.contains('"') => Some(value.to_owned()),
        Some(inside) if !inside.contains(['"', '\'']) => Some(format!("'{inside}'")),
        _ => None,
    }
}

/// A value as the server reports it, as a literal.
pub(super) fn literal(value: &str) -> String {
    let is_number = !value.is_empty()
        && value.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b'-' | b'.'))
        && value.bytes().any(|byte| byte.is_ascii_digit());
    if is_number && value.parse::<f64>().is_ok() {
        return value.to_owned();
    }
    // Without a backslash it means the same in every sql_mode.
    if !value.contains('\\') {
        return format!("'{}'", value.replace('\'', "''"));
    }
    let mut hex = String::from("x'");
    for byte in value.bytes() {
        hex.push_str(&format!("{byte:02x}"));
    }
    hex.push('\'');
    hex
}

impl MyTracker {
    /// What the text says of the session changes that the server will report.
    pub(super) fn explain(
        &self,
        facts: &Facts,
        details: &Details,
        text: &[u8],
        server: &MyServer,
    ) -> Explained {
        let mut explained = Explained {
            unsettles: is_untold(facts, server),
            state: !facts.pins.is_empty()
                || facts.kind == StatementKind::Ddl
                || !details.named_statements.is_empty()
                || details.xa.is_some(),
            // These run no code, and pin for as long as they have to.
            taints: facts.taints
                && details.xa.is_none()
                && (facts.calls_unknown_function || !facts.digest_text.starts_with("handler ")),
            passing: details.sets_for_statement,
            holds: self.holds(facts, details, text, server),
            ..Explained::default()
        };
        let sets = |wanted: fn(&Assignment) -> bool| details.sets_more || details.sets.iter().any(wanted);
        let sets_user = sets(|one| one.scope == Scope::User);
        // Servers do not report a collation that is not the character set's own.
        let collates = || text.to_ascii_lowercase().windows(7).any(|word| word == b"collate");
        let sets_collation =
            sets(|one| &*one.name == "character set") || (sets(|one| &*one.name == "names") && collates());
        if facts.statements != 1 {
            explained.unsettles |= sets_user || explained.passing || sets_collation;
            return explained;
        }
        if sets_collation {
            // So it is made again by its own words.
            explained.state = true;
            match classify::character_set_assignment(text, self.mode).and_then(|value| in_any_mode(&value)) {
                Some(words) if !sets(|one| CHARACTER_SET.contains(&&*one.name)) => {
                    explained.covers = CHARACTER_SET;
                    explained.made.push(("names".into(), format!("SET {words}").into()));
                }
                _ => explained.unsettles = true,
            }
        }
        if sets_user {
            explained.state = true;
            let assignments = classify::user_variable_assignments(text, self.mode);
            explained.unsettles |= assignments.is_none();
            for (name, value) in assignments.unwrap_or_default() {
                match in_any_mode(&value) {
                    Some(value) => {
                        let statement = format!("SET @{} = {value}", quoted(&name));
                        explained.made.push((format!("@{name}").into(), statement.into()));
                    }
                    None => explained.unsettles = true,
                }
            }
        }
        explained
    }

    /// A change of the session that the server reports while a statement of the client runs.
    pub(super) fn learn(&mut self, change: &SessionChange<'_>) {
        match change {
            SessionChange::Variable { name, value } => {
                let (Ok(name), Ok(value)) = (std::str::from_utf8(name), std::str::from_utf8(value)) else {
                    self.learned.pins.insert(PinReason::SessionVariable);
                    return;
                };
                let name = name.to_lowercase();
                // With a write this may be what a `SET STATEMENT` before it has put back, and explains nothing of what
                // triggers do.
                self.explains.state |= UNTRACKED.contains(&&*name) || !self.explains.nature.writes;
                if !UNTRACKED.contains(&&*name)
                    && !HARMLESS.contains(&&*name)
                    && !OURS.contains(&(&*name, value))
                {
                    self.held.note_context();
                }
                if UNTRACKED.contains(&&*name) || self.explains.covers.contains(&&*name) {
                    return;
                }
                self.asks.note(&name);
                self.settings_of_transactions |= OF_TRANSACTIONS.contains(&&*name);
                if OURS.contains(&(&*name, value)) {
                    return;
                }
                if MOMENTARY.contains(&&*name) || name.starts_with("session_track") {
                    self.learned.pins.insert(PinReason::SessionVariable);
                    return;
                }
                let value = match value {
                    // No name of a character set.
                    "" if name == "character_set_results" => "NULL".to_owned(),
                    value => literal(value),
                };
                let statement = format!("SET SESSION `{name}` = {value}");
                self.learned.changes.push(StateChange::Made(name.into(), statement.into()));
            }
            SessionChange::Schema(name) => {
                self.held.note_context();
                self.explains.state = true;
                match std::str::from_utf8(name) {
                    Ok(name) if !name.is_empty() => {
                        let statement = format!("USE {}", quoted(name));
                        self.learned.changes.push(StateChange::Made("database".into(), statement.into()));
                    }
                    _ => self.learned.pins.insert(PinReason::SessionVariable),
                }
            }
            SessionChange::State(b"1") => self.state_changed = true,
            _ => {}
        }
    }

    /// All that a statement has changed is known now. What an error keeps back, or what no text and no report
    /// explains, makes the session keep this connection.
    pub(super) fn settle(&mut self, failed: bool, server: &mut MyServer) {
        let mut explains = std::mem::take(&mut self.explains);
        server.restores |= explains.passing;
        self.settle_held(std::mem::take(&mut explains.holds), failed, server);
        let changed = std::mem::take(&mut self.state_changed);
        let surprise = changed && (explains.taints || !explains.state);
        let unknown = surprise || explains.unsettles || (failed && explains.taints);
        self.variables.settle(failed, unknown);
        if unknown {
            self.learned.pins.insert(PinReason::SessionVariable);
        }
        if !failed {
            for (variable, statement) in explains.made {
                if let Some(name) = variable.strip_prefix('@') {
                    self.variables.note_made(name);
                }
                self.learned.changes.push(StateChange::Made(variable, statement));
            }
        }
    }
}
