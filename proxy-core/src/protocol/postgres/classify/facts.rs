//! Reads [`Facts`] off a parse tree.

use pg_query::{
    NodeEnum,
    protobuf::{
        DiscardMode, ExplainStmt, FuncCall, OnCommitAction, ParseResult, SelectStmt, SetOperation,
        TransactionStmt, TransactionStmtKind, VariableSetKind, VariableSetStmt,
    },
};

use super::{
    builtin::{self, Effect},
    walk::{Value, Visit, walk},
};
use crate::protocol::{ChannelChange, Facts, Moves, PinReason, PinReasons, StatementKind};

/// The facts of a parsed text; `None` when something in the tree is not known here.
pub(super) fn from_tree(tree: &ParseResult, digest_text: impl FnOnce() -> String) -> Option<Facts> {
    let statements: Vec<&NodeEnum> =
        tree.stmts.iter().filter_map(|raw| raw.stmt.as_ref()?.node.as_ref()).collect();
    let mut facts = Facts {
        statements: u16::try_from(statements.len()).unwrap_or(u16::MAX),
        is_deallocate_one: matches!(statements[..], [NodeEnum::DeallocateStmt(one)] if !one.isall),
        ends_transaction: !statements.is_empty() && statements.iter().all(|node| ends_transaction(node)),
        commits: matches!(statements[..], [node] if commits(node)),
        channels: statements.iter().filter_map(|node| channel_change(node)).collect(),
        is_plain_set: matches!(statements[..], [NodeEnum::VariableSetStmt(one)] if is_plain_set(one)),
        ..Facts::nothing()
    };
    let lone = statements.len() == 1;
    facts.resets =
        statements.iter().map(|node| reset_tag(node, lone)).collect::<Option<_>>().unwrap_or_default();
    let mut ever_pinned = PinReasons::NONE;
    let (mut taints_otherwise, mut calls_code) = (false, false);
    for node in statements {
        let one = Statement::read(node)?;
        if matches!(facts.kind, StatementKind::Empty | StatementKind::Transaction) {
            facts.kind = one.kind;
        }
        if one.kind == StatementKind::Transaction {
            // A rollback brings back what was cleared before it.
            facts.pins = ever_pinned;
            facts.clears = PinReasons::NONE;
        }
        ever_pinned = ever_pinned.union(one.seen.pins);
        facts.pins = facts.pins.without(one.clears).union(one.seen.pins);
        facts.clears = facts.clears.union(one.clears);
        facts.rds_pins = facts.rds_pins.union(one.seen.rds_pins);
        facts.read_only &= one.read_only;
        facts.taints |= one.seen.taints || one.seen.calls_code;
        facts.needs_session_function |= one.seen.needs_session_function;
        facts.changes_settings |= one.seen.changes_settings;
        facts.drops_all_prepared |= one.drops_all_prepared;
        facts.prepared_names.extend(one.seen.prepared_names);
        if let NodeEnum::PrepareStmt(prepare) = node {
            facts.given_names.push(prepare.name.clone());
        }
        facts.moves_transaction |= matches!(one.kind, StatementKind::Transaction | StatementKind::Routine);
        facts.locks_rows |= one.seen.locks_rows;
        facts.writes |= one.seen.writes || one.seen.selects_into;
        facts.calls_acting_function |= one.seen.calls_acting_function;
        facts.calls_unknown_function |= one.seen.calls_unknown_function;
        facts.variables_in_literals |= one.seen.variables_in_literals;
        let common = one.seen.common_tables;
        facts.tables.extend(one.seen.tables.into_iter().filter(|table| !common.contains(table)));
        facts.functions.extend(one.seen.functions);
        facts.variables.extend(one.seen.variables);
        facts.may_end = facts.may_end.union(one.seen.may_end).union(one.clears);
        facts.moves = facts.moves.max(one.seen.moves);
        facts.moved.extend(one.seen.moved);
        taints_otherwise |= one.seen.taints;
        calls_code |= one.seen.calls_code;
        facts.changes_schema |=
            one.kind == StatementKind::Ddl && one.seen.temporary == 0 && changes_schema(node);
    }
    facts.reads_channels = facts
        .functions
        .iter()
        .any(|name| matches!(&**name, "pg_listening_channels" | "pg_catalog.pg_listening_channels"));
    facts.taints_by_calls = calls_code && !taints_otherwise;
    if facts.statements > 1 && facts.moves != Moves::Nothing {
        // Which of them have run is not known before all have.
        facts.moves = facts.moves.max(Moves::ByValue);
    }
    facts.moved.sort_unstable();
    facts.moved.dedup();
    for names in [&mut facts.tables, &mut facts.functions, &mut facts.variables] {
        names.sort_unstable();
        names.dedup();
        names.truncate(Facts::MAX_NAMES);
        names.shrink_to_fit();
    }
    facts.digest_text = digest_text();
    Some(facts)
}

/// True for `COMMIT`, `ROLLBACK`, `PREPARE TRANSACTION` that leave no transaction open.
fn ends_transaction(node: &NodeEnum) -> bool {
    let NodeEnum::TransactionStmt(statement) = node else { return false };
    let TransactionStmt { kind, chain, .. } = statement;
    !chain
        && matches!(
            TransactionStmtKind::try_from(*kind),
            Ok(TransactionStmtKind::TransStmtCommit
                | TransactionStmtKind::TransStmtRollback
                | TransactionStmtKind::TransStmtPrepare)
        )
}

/// True for `COMMIT` and its synonyms that leave no transaction open.
fn commits(node: &NodeEnum) -> bool {
    let NodeEnum::TransactionStmt(statement) = node else { return false };
    !statement.chain
        && TransactionStmtKind::try_from(statement.kind) == Ok(TransactionStmtKind::TransStmtCommit)
}

/// What `LISTEN` and `UNLISTEN` do, and `DISCARD ALL` (manual, "DISCARD").
fn channel_change(node: &NodeEnum) -> Option<ChannelChange> {
    match node {
        NodeEnum::ListenStmt(listen) => Some(ChannelChange::Listen(listen.conditionname.as_str().into())),
        NodeEnum::UnlistenStmt(unlisten) if unlisten.conditionname.is_empty() => {
            Some(ChannelChange::UnlistenAll)
        }
        NodeEnum::UnlistenStmt(unlisten) => {
            Some(ChannelChange::Unlisten(unlisten.conditionname.as_str().into()))
        }
        NodeEnum::DiscardStmt(discard) => (DiscardMode::try_from(discard.target)
            == Ok(DiscardMode::DiscardAll))
        .then_some(ChannelChange::UnlistenAll),
        _ => None,
    }
}

/// Of the discarding commands, all that `DISCARD ALL` puts back (manual, "DISCARD"). Not among them: loaded
/// libraries, and whatever else outlives it.
const DISCARDED: [PinReason; 8] = [
    PinReason::TemporaryTable,
    PinReason::AdvisoryLock,
    PinReason::Listen,
    PinReason::HeldCursor,
    PinReason::SessionVariable,
    PinReason::SessionIdentity,
    PinReason::PreparedStatement,
    PinReason::SessionFunction,
];

/// `CURSOR_OPT_HOLD`, from PostgreSQL's `nodes/parsenodes.h`.
const CURSOR_OPT_HOLD: i64 = 0x20;

/// What one statement of a text does.
struct Statement {
    kind: StatementKind,
    read_only: bool,
    clears: PinReasons,
    drops_all_prepared: bool,
    seen: Seen,
}

impl Statement {
    fn read(node: &NodeEnum) -> Option<Self> {
        let mut seen = Seen::default();
        walk(node, &mut seen).ok()?;
        let mut one = Self {
            kind: kind(node, &seen),
            read_only: false,
            clears: PinReasons::NONE,
            drops_all_prepared: false,
            seen,
        };
        one.read_only = match node {
            NodeEnum::SelectStmt(_) => one.seen.only_reads(),
            NodeEnum::VariableShowStmt(_) => true,
            NodeEnum::ExplainStmt(explain) => {
                !runs_its_query(explain) || one.explained_query_only_reads(explain)
            }
            _ => false,
        };
        match node {
            NodeEnum::SelectStmt(select) if is_unlock_all(select) => one.clear(PinReason::AdvisoryLock),
            NodeEnum::SelectStmt(select) if one.seen.moves == Moves::ByValue && sets_by_constants(select) => {
                one.seen.moves = Moves::ByText;
            }
            NodeEnum::VariableSetStmt(set) => one.set(set),
            NodeEnum::DiscardStmt(discard) => {
                one.seen.changes_settings = true;
                one.seen.rds_pins.insert(PinReason::SessionVariable);
                match DiscardMode::try_from(discard.target) {
                    Ok(DiscardMode::DiscardAll) => {
                        one.drops_all_prepared = true;
                        DISCARDED.into_iter().for_each(|reason| one.clear(reason));
                    }
                    Ok(DiscardMode::DiscardTemp) => one.clear(PinReason::TemporaryTable),
                    Ok(DiscardMode::DiscardSequences) => one.clear(PinReason::SessionFunction),
                    Ok(DiscardMode::DiscardPlans | DiscardMode::Undefined) | Err(_) => {}
                }
            }
            NodeEnum::DeallocateStmt(deallocate) => {
                one.seen.rds_pins.insert(PinReason::PreparedStatement);
                if deallocate.isall {
                    one.drops_all_prepared = true;
                    one.clear(PinReason::PreparedStatement);
                } else {
                    one.seen.prepared_names.push(deallocate.name.clone());
                    one.seen.may_end.insert(PinReason::PreparedStatement);
                    one.seen.moves(Moves::Back, &[&prepared(&deallocate.name)]);
                }
            }
            NodeEnum::PrepareStmt(prepare) => {
                // Nothing of it runs now. What would pin when it does is not told by the EXECUTE.
                if one.seen.pins.is_empty() && !one.seen.names_temporary_schema {
                    one.seen.moves = Moves::Nothing;
                    one.seen.moves(Moves::ByText, &[&prepared(&prepare.name)]);
                    one.seen.taints = false;
                    one.seen.calls_code = false;
                }
                one.seen.pin(PinReason::PreparedStatement);
            }
            NodeEnum::ListenStmt(_) => one.seen.pin(PinReason::Listen),
            NodeEnum::UnlistenStmt(unlisten) if unlisten.conditionname.is_empty() => {
                one.clear(PinReason::Listen)
            }
            NodeEnum::UnlistenStmt(_) => one.seen.may_end.insert(PinReason::Listen),
            NodeEnum::ClosePortalStmt(close) if close.portalname.is_empty() => {
                one.clear(PinReason::HeldCursor)
            }
            NodeEnum::ClosePortalStmt(_) => one.seen.may_end.insert(PinReason::HeldCursor),
            NodeEnum::DropStmt(_) | NodeEnum::DropOwnedStmt(_) => {
                one.seen.may_end.insert(PinReason::TemporaryTable);
            }
            NodeEnum::LoadStmt(load) => {
                one.seen.pin(PinReason::Library);
                // Bytes that are no UTF-8 have become the same mark in every name.
                if !load.filename.contains(char::REPLACEMENT_CHARACTER) {
                    one.seen.moves(Moves::ByText, &[&format!("{LIBRARY}{}", load.filename)]);
                }
            }
            // Code that nobody reads.
            NodeEnum::DoStmt(_) => {
                one.seen.taints = true;
                one.seen.moves(Moves::Unseen, &[]);
            }
            // They run code that their text does not show.
            NodeEnum::CallStmt(_) => one.seen.calls_code = true,
            NodeEnum::CreateExtensionStmt(_)
            | NodeEnum::AlterExtensionStmt(_)
            | NodeEnum::CreatePlangStmt(_)
            | NodeEnum::RefreshMatViewStmt(_) => one.seen.taints = true,
            _ => {}
        }
        let in_temporary_schema = one.seen.names_temporary_schema && may_create_where_named(node);
        if in_temporary_schema || one.seen.temporary > 0 {
            one.seen.rds_pins.insert(PinReason::TemporaryTable);
        }
        if in_temporary_schema || one.seen.temporary > one.seen.dropped_on_commit {
            one.seen.pins.insert(PinReason::TemporaryTable);
        }
        Some(one)
    }

    fn clear(&mut self, reason: PinReason) {
        self.clears.insert(reason);
    }

    /// `SET`, `RESET`.
    fn set(&mut self, set: &VariableSetStmt) {
        self.seen.changes_settings = true;
        if !set.name.is_empty() {
            self.seen.variables.push(set.name.to_lowercase());
        }
        let kind = VariableSetKind::try_from(set.kind).unwrap_or(VariableSetKind::Undefined);
        // Of the several settings at once, those of the running transaction end with it.
        let of_transaction = kind == VariableSetKind::VarSetMulti && set.name.starts_with("TRANSACTION");
        if set.is_local || of_transaction {
            return;
        }
        self.seen.rds_pins.insert(PinReason::SessionVariable);
        match kind {
            VariableSetKind::VarResetAll => self.clear(PinReason::SessionVariable),
            VariableSetKind::VarReset | VariableSetKind::VarSetDefault => {
                self.moves_variable(Moves::Back, &set.name);
            }
            VariableSetKind::VarSetValue
            | VariableSetKind::VarSetCurrent
            | VariableSetKind::VarSetMulti
            | VariableSetKind::Undefined => {
                self.seen.pins.insert(setting_pin(&set.name));
                self.seen.taints |= set.name.eq_ignore_ascii_case("seed");
                let by_text = kind == VariableSetKind::VarSetValue;
                self.moves_variable(if by_text { Moves::ByText } else { Moves::ByValue }, &set.name);
            }
        }
    }

    /// How the setting of a variable moves.
    fn moves_variable(&mut self, moves: Moves, name: &str) {
        match &*name.to_lowercase() {
            // They are the running transaction's.
            "transaction_isolation" | "transaction_read_only" | "transaction_deferrable" => {}
            // No value tells where the sequence of random numbers stands.
            "seed" => {}
            // It takes the role away.
            "session_authorization" => {
                self.seen.moves(Moves::ByValue, &["session_authorization", "role"]);
            }
            "session characteristics" => self.seen.moves(
                Moves::ByValue,
                &[
                    "default_transaction_isolation",
                    "default_transaction_read_only",
                    "default_transaction_deferrable",
                ],
            ),
            name => self.seen.moves(moves, &[name]),
        }
    }

    fn explained_query_only_reads(&self, explain: &ExplainStmt) -> bool {
        let query = explain.query.as_ref().and_then(|query| query.node.as_ref());
        matches!(query, Some(NodeEnum::SelectStmt(_))) && self.seen.only_reads()
    }
}

/// `SET variable = value` that means the same wherever it is run again. Not those that change how later texts are read:
/// on replay they might come before the text that they should have come after.
fn is_plain_set(set: &VariableSetStmt) -> bool {
    const READING: [&str; 4] =
        ["standard_conforming_strings", "backslash_quote", "escape_string_warning", "client_encoding"];
    VariableSetKind::try_from(set.kind) == Ok(VariableSetKind::VarSetValue)
        && !set.is_local
        && !READING.iter().any(|name| set.name.eq_ignore_ascii_case(name))
}

/// What a statement prepared by SQL is called among a session's settings. No variable has a name with a space.
pub(in super::super) fn prepared(name: &str) -> String {
    format!("{PREPARED}{name}")
}

/// Begins what [`prepared`] gives.
pub(in super::super) const PREPARED: &str = "prepared statement ";

/// Begins what a loaded library is called among a session's settings.
pub(in super::super) const LIBRARY: &str = "library ";

/// The pin of a setting made for the session.
fn setting_pin(name: &str) -> PinReason {
    if ["role", "session_authorization"].iter().any(|identity| name.eq_ignore_ascii_case(identity)) {
        PinReason::SessionIdentity
    } else {
        PinReason::SessionVariable
    }
}

fn kind(node: &NodeEnum, seen: &Seen) -> StatementKind {
    match node {
        NodeEnum::SelectStmt(_) if seen.selects_into => StatementKind::Ddl,
        NodeEnum::SelectStmt(_) if seen.writes => StatementKind::Write,
        NodeEnum::SelectStmt(_) | NodeEnum::VariableShowStmt(_) => StatementKind::Select,
        NodeEnum::InsertStmt(_)
        | NodeEnum::UpdateStmt(_)
        | NodeEnum::DeleteStmt(_)
        | NodeEnum::MergeStmt(_) => StatementKind::Write,
        NodeEnum::TransactionStmt(_) => StatementKind::Transaction,
        NodeEnum::VariableSetStmt(_) | NodeEnum::DiscardStmt(_) => StatementKind::Session,
        NodeEnum::CopyStmt(_) => StatementKind::Copy,
        NodeEnum::DoStmt(_) | NodeEnum::CallStmt(_) => StatementKind::Routine,
        NodeEnum::ExplainStmt(_)
        | NodeEnum::PrepareStmt(_)
        | NodeEnum::ExecuteStmt(_)
        | NodeEnum::DeallocateStmt(_)
        | NodeEnum::DeclareCursorStmt(_)
        | NodeEnum::ClosePortalStmt(_)
        | NodeEnum::FetchStmt(_)
        | NodeEnum::ListenStmt(_)
        | NodeEnum::UnlistenStmt(_)
        | NodeEnum::NotifyStmt(_)
        | NodeEnum::LoadStmt(_)
        | NodeEnum::LockStmt(_)
        | NodeEnum::ConstraintsSetStmt(_) => StatementKind::Other,
        _ => StatementKind::Ddl,
    }
}

/// True when a `pg_temp` in the statement may be where something new comes to stand, now or, through a
/// `search_path`, later. Literals that mention it count as names do.
fn may_create_where_named(node: &NodeEnum) -> bool {
    match node {
        NodeEnum::VariableSetStmt(_)
        | NodeEnum::CreateStmt(_)
        | NodeEnum::CreateTableAsStmt(_)
        | NodeEnum::CreateForeignTableStmt(_)
        | NodeEnum::ViewStmt(_)
        | NodeEnum::CreateSeqStmt(_)
        | NodeEnum::CreateSchemaStmt(_)
        | NodeEnum::DefineStmt(_)
        | NodeEnum::CompositeTypeStmt(_)
        | NodeEnum::CreateEnumStmt(_)
        | NodeEnum::CreateRangeStmt(_)
        | NodeEnum::CreateDomainStmt(_)
        | NodeEnum::CreateStatsStmt(_)
        | NodeEnum::CreateConversionStmt(_)
        | NodeEnum::CreateOpClassStmt(_)
        | NodeEnum::CreateOpFamilyStmt(_)
        | NodeEnum::CreateExtensionStmt(_)
        | NodeEnum::AlterExtensionStmt(_)
        | NodeEnum::AlterObjectSchemaStmt(_)
        | NodeEnum::ImportForeignSchemaStmt(_) => true,
        // A function's own `SET search_path = …, pg_temp` is common, and its own affair.
        NodeEnum::CreateFunctionStmt(create) => create.funcname.iter().any(|part| {
            matches!(&part.node, Some(NodeEnum::String(name)) if mentions_temporary_schema(&name.sval))
        }),
        NodeEnum::SelectStmt(select) => select.into_clause.is_some(),
        NodeEnum::ExplainStmt(explain) => {
            explain.query.as_ref().and_then(|query| query.node.as_ref()).is_some_and(may_create_where_named)
        }
        _ => false,
    }
}

/// What a server answers to a statement that takes state back and has nothing to complain of when there is none. The tag
/// of a `SELECT` stands for that of `pg_advisory_unlock_all()`. Source: `src/include/tcop/cmdtaglist.h`.
fn reset_tag(node: &NodeEnum, lone: bool) -> Option<&'static str> {
    match node {
        NodeEnum::DiscardStmt(discard) => match DiscardMode::try_from(discard.target).ok()? {
            // Not allowed among others.
            DiscardMode::DiscardAll => lone.then_some("DISCARD ALL"),
            DiscardMode::DiscardPlans => Some("DISCARD PLANS"),
            DiscardMode::DiscardTemp => Some("DISCARD TEMP"),
            DiscardMode::DiscardSequences | DiscardMode::Undefined => None,
        },
        NodeEnum::DeallocateStmt(one) if one.isall => Some("DEALLOCATE ALL"),
        NodeEnum::ClosePortalStmt(close) if close.portalname.is_empty() => Some("CLOSE CURSOR ALL"),
        NodeEnum::UnlistenStmt(unlisten) if unlisten.conditionname.is_empty() => Some("UNLISTEN"),
        NodeEnum::SelectStmt(select) if is_unlock_all(select) && !is_named(select) => Some("SELECT 1"),
        NodeEnum::VariableSetStmt(set) if !set.is_local => {
            let identity = ["role", "session_authorization"].contains(&&*set.name.to_lowercase());
            match VariableSetKind::try_from(set.kind).ok()? {
                VariableSetKind::VarResetAll => Some("RESET"),
                VariableSetKind::VarReset if identity => Some("RESET"),
                VariableSetKind::VarSetDefault if identity => Some("SET"),
                _ => None,
            }
        }
        _ => None,
    }
}

/// True unless a schema change cannot concern what is prepared.
fn changes_schema(node: &NodeEnum) -> bool {
    !matches!(
        node,
        NodeEnum::VacuumStmt(_)
            | NodeEnum::IndexStmt(_)
            | NodeEnum::CommentStmt(_)
            | NodeEnum::GrantStmt(_)
            | NodeEnum::GrantRoleStmt(_)
            | NodeEnum::AlterDefaultPrivilegesStmt(_)
            | NodeEnum::ClusterStmt(_)
            | NodeEnum::ReindexStmt(_)
            | NodeEnum::CheckPointStmt(_)
            | NodeEnum::TruncateStmt(_)
            | NodeEnum::CreateRoleStmt(_)
            | NodeEnum::AlterRoleStmt(_)
            | NodeEnum::AlterSystemStmt(_)
            | NodeEnum::CreatedbStmt(_)
            | NodeEnum::RefreshMatViewStmt(_)
            | NodeEnum::CreateStatsStmt(_)
            | NodeEnum::SecLabelStmt(_)
    )
}

/// True when `EXPLAIN` runs what it explains. An `ANALYZE` counts whatever value it is given: the tree shows a value
/// alike whether it was a word or a literal.
fn runs_its_query(explain: &ExplainStmt) -> bool {
    explain.options.iter().any(
        |option| matches!(&option.node, Some(NodeEnum::DefElem(element)) if element.defname == "analyze"),
    )
}

/// `schema.name`, or `name` without one.
fn qualified(schema: Option<&str>, name: &str) -> String {
    schema.map_or_else(|| name.to_owned(), |schema| format!("{schema}.{name}"))
}

/// The names of the variables that `set_config` sets in literals, in lower case, each once: for whoever must know
/// them of one very text.
pub(super) fn literal_variables(tree: &ParseResult) -> Vec<String> {
    #[derive(Default)]
    struct Names(Vec<String>);
    impl Visit for Names {
        fn wants(&self, structure: &'static str, field: &'static str, _: &[(&'static str, Value)]) -> bool {
            (structure, field) == ("FuncCall", "funcname") || (structure, field) == ("FuncCall", "args")
        }
        fn text(&mut self, _: &str) {}
        fn structure(&mut self, _: &'static str, fields: &[(&'static str, Value)]) {
            let [("funcname", name), ("args", arguments)] = fields else { return };
            if name.strings().last() == Some(&"set_config")
                && let Some(name) = arguments.list().first().and_then(Value::string_constant)
            {
                self.0.push(name.to_lowercase());
            }
        }
    }
    let mut names = Names::default();
    for raw in &tree.stmts {
        if let Some(node) = raw.stmt.as_ref().and_then(|statement| statement.node.as_ref()) {
            // What cannot be walked has no facts either.
            let _ = walk(node, &mut names);
        }
    }
    names.0.sort_unstable();
    names.0.dedup();
    names.0
}

/// `SELECT pg_advisory_unlock_all()` and nothing else, so that it surely runs.
fn is_unlock_all(select: &SelectStmt) -> bool {
    lone_call(select).is_some_and(|(name, call)| {
        matches!(name[..], ["pg_advisory_unlock_all"] | ["pg_catalog", "pg_advisory_unlock_all"])
            && call.args.is_empty()
    })
}

/// True when the first column has a name of its own.
fn is_named(select: &SelectStmt) -> bool {
    let target = select.target_list.first().and_then(|target| target.node.as_ref());
    !matches!(target, Some(NodeEnum::ResTarget(target)) if target.name.is_empty())
}

/// `SELECT set_config('name', 'value', false)` and nothing else. What it says in literals is not looked at.
fn sets_by_constants(select: &SelectStmt) -> bool {
    let constant = |node: &pg_query::protobuf::Node| matches!(node.node, Some(NodeEnum::AConst(_)));
    lone_call(select).is_some_and(|(name, call)| {
        matches!(name[..], ["set_config"] | ["pg_catalog", "set_config"]) && call.args.iter().all(constant)
    })
}

/// The function's name and the call where that is all of the statement.
fn lone_call(select: &SelectStmt) -> Option<(Vec<&str>, &FuncCall)> {
    let [target] = &select.target_list[..] else { return None };
    let Some(NodeEnum::ResTarget(target)) = &target.node else { return None };
    let Some(NodeEnum::FuncCall(call)) = target.val.as_ref().and_then(|value| value.node.as_ref()) else {
        return None;
    };
    let name: Vec<&str> = call
        .funcname
        .iter()
        .filter_map(|part| match &part.node {
            Some(NodeEnum::String(name)) => Some(name.sval.as_str()),
            _ => None,
        })
        .collect();
    let bare = SelectStmt {
        target_list: select.target_list.clone(),
        limit_option: select.limit_option,
        op: SetOperation::SetopNone as i32,
        ..SelectStmt::default()
    };
    let plain = call.agg_filter.is_none() && call.over.is_none() && *select == bare;
    plain.then_some((name, call))
}

fn mentions_temporary_schema(text: &str) -> bool {
    const NAME: &[u8] = b"pg_temp";
    text.as_bytes().windows(NAME.len()).any(|word| word.eq_ignore_ascii_case(NAME))
}

/// What was found anywhere in one statement, however deep.
#[derive(Default)]
struct Seen {
    pins: PinReasons,
    rds_pins: PinReasons,
    /// May leave what neither the text nor the source of functions shows.
    taints: bool,
    /// Runs code of the database's own.
    calls_code: bool,
    needs_session_function: bool,
    changes_settings: bool,
    prepared_names: Vec<String>,
    /// `INSERT`, `UPDATE`, `DELETE`, `MERGE`.
    writes: bool,
    /// A function that acts, `FOR UPDATE`, and the like.
    acts: bool,
    selects_into: bool,
    /// Temporary relations made, and those of them that end with the transaction.
    temporary: usize,
    dropped_on_commit: usize,
    names_temporary_schema: bool,
    locks_rows: bool,
    calls_acting_function: bool,
    calls_unknown_function: bool,
    variables_in_literals: bool,
    tables: Vec<String>,
    /// Names of common table expressions, which look like tables where they are used.
    common_tables: Vec<String>,
    functions: Vec<String>,
    variables: Vec<String>,
    moves: Moves,
    moved: Vec<String>,
    may_end: PinReasons,
}

impl Seen {
    fn moves(&mut self, moves: Moves, names: &[&str]) {
        self.moves = self.moves.max(moves);
        self.moved.extend(names.iter().map(|name| (*name).to_owned()));
    }

    /// A reason in both profiles.
    fn pin(&mut self, reason: PinReason) {
        self.pins.insert(reason);
        self.rds_pins.insert(reason);
    }

    fn only_reads(&self) -> bool {
        !self.writes && !self.acts && !self.taints && !self.calls_code && !self.selects_into
    }

    fn call(&mut self, name: &[&str], arguments: Option<&Value>) {
        let (schema, name) = match name {
            [name] => (None, *name),
            [.., schema, name] => (Some(*schema), *name),
            [] => return,
        };
        let effect = builtin::effect(schema, name);
        self.functions.push(qualified(schema, name));
        match effect {
            Effect::None => {}
            Effect::Hidden | Effect::Code => self.calls_unknown_function = true,
            _ => self.calls_acting_function = true,
        }
        self.acts |= effect != Effect::None;
        if let Some(reason) = effect.pin() {
            self.pins.insert(reason);
        }
        match effect {
            Effect::None | Effect::Acts => {}
            Effect::Sequence => self.rds_pins.insert(PinReason::SessionFunction),
            Effect::SequenceRead => {
                self.rds_pins.insert(PinReason::SessionFunction);
                self.needs_session_function = true;
            }
            Effect::Lock => self.rds_pins.insert(PinReason::AdvisoryLock),
            Effect::Unlock => {
                self.rds_pins.insert(PinReason::AdvisoryLock);
                self.may_end.insert(PinReason::AdvisoryLock);
            }
            Effect::Setting => {
                self.changes_settings = true;
                self.set_config(arguments);
            }
            Effect::Holds | Effect::Hidden => self.taints = true,
            Effect::Code => self.calls_code = true,
        }
    }

    /// `set_config(name, value, is_local)`. Only the word `true` as the third argument makes it local; anything else
    /// might come out as false.
    fn set_config(&mut self, arguments: Option<&Value>) {
        self.variables_in_literals = true;
        let arguments = arguments.map(Value::list).unwrap_or_default();
        let name = arguments.first().and_then(Value::string_constant);
        let value = arguments.get(1).and_then(Value::string_constant);
        let local = arguments.len() == 3 && arguments[2].is_constant_true();
        // A value to come may put pg_temp into the search_path, and tables there outlive the transaction.
        let path = name.is_none_or(|name| name.eq_ignore_ascii_case("search_path"));
        match value {
            None => self.taints |= path,
            Some(value) if mentions_temporary_schema(value) => self.pin(PinReason::TemporaryTable),
            Some(_) => {}
        }
        if local {
            return;
        }
        self.rds_pins.insert(PinReason::SessionVariable);
        match name {
            // It takes the role away.
            Some(name) if name.eq_ignore_ascii_case("session_authorization") => {
                self.pins.insert(setting_pin(name));
                self.moves(Moves::ByValue, &["session_authorization", "role"]);
            }
            Some(name) => {
                self.pins.insert(setting_pin(name));
                self.moves(Moves::ByValue, &[]);
            }
            None => {
                self.pins.insert(PinReason::SessionVariable);
                self.pins.insert(PinReason::SessionIdentity);
                self.moves(Moves::Unseen, &[]);
            }
        }
    }
}

impl Visit for Seen {
    fn wants(&self, structure: &'static str, field: &'static str, sofar: &[(&'static str, Value)]) -> bool {
        if (structure, field) == ("FuncCall", "args") {
            // Of this one alone, since arguments may be many and deep.
            return matches!(sofar, [("funcname", name)] if name.strings().last() == Some(&"set_config"));
        }
        matches!(
            (structure, field),
            ("FuncCall", "funcname")
                | ("AExpr", "name")
                | ("SubLink", "oper_name")
                | ("SortBy", "use_op")
                | ("RangeTableSample", "method")
                | ("RangeVar", "schemaname" | "relname" | "relpersistence")
                | ("CommonTableExpr", "ctename")
                | ("CreateStmt", "oncommit")
                | ("IntoClause", "on_commit")
                | ("DeclareCursorStmt", "options")
                | ("ExecuteStmt", "name")
        )
    }

    fn text(&mut self, text: &str) {
        self.names_temporary_schema |= mentions_temporary_schema(text);
    }

    fn structure(&mut self, structure: &'static str, fields: &[(&'static str, Value)]) {
        let field = |name| fields.iter().find(|(key, _)| *key == name).map(|(_, value)| value);
        match structure {
            "FuncCall" => {
                let name = field("funcname").map(Value::strings).unwrap_or_default();
                self.call(&name, field("args"));
            }
            "AExpr" | "SubLink" | "SortBy" | "RangeTableSample" => {
                for (_, name) in fields {
                    let name = name.strings();
                    let foreign = name.len() > 1 && name[name.len() - 2] != "pg_catalog";
                    let method = structure == "RangeTableSample"
                        && !matches!(name.last(), Some(&("bernoulli" | "system")));
                    self.calls_code |= foreign || method;
                }
            }
            "RangeVar" => {
                let temporary = field("relpersistence").is_some_and(|value| value.strings() == ["t"]);
                self.temporary += usize::from(temporary);
                let schema = field("schemaname").map(Value::strings).unwrap_or_default();
                let name = field("relname").map(Value::strings).unwrap_or_default();
                if let Some(name) = name.first().filter(|name| !name.is_empty()) {
                    let schema = schema.first().copied().filter(|schema| !schema.is_empty());
                    self.tables.push(qualified(schema, name));
                }
            }
            "CreateStmt" | "IntoClause" => {
                let drops = fields.iter().any(|(_, value)| {
                    value.integer() == Some(i64::from(OnCommitAction::OncommitDrop as i32))
                });
                self.dropped_on_commit += usize::from(drops);
                self.selects_into |= structure == "IntoClause";
            }
            "DeclareCursorStmt" => {
                self.rds_pins.insert(PinReason::HeldCursor);
                let options = field("options").and_then(Value::integer).unwrap_or(CURSOR_OPT_HOLD);
                if options & CURSOR_OPT_HOLD != 0 {
                    self.pins.insert(PinReason::HeldCursor);
                }
            }
            "ExecuteStmt" => {
                self.rds_pins.insert(PinReason::PreparedStatement);
                // What it runs was said in another text.
                self.calls_code = true;
                let name = field("name").map(Value::strings).unwrap_or_default();
                self.prepared_names.extend(name.into_iter().map(str::to_owned));
            }
            "InsertStmt" | "UpdateStmt" | "DeleteStmt" | "MergeStmt" => self.writes = true,
            "CommonTableExpr" => {
                let name = field("ctename").map(Value::strings).unwrap_or_default();
                self.common_tables.extend(name.into_iter().map(str::to_owned));
            }
            "LockingClause" => {
                self.acts = true;
                self.locks_rows = true;
            }
            _ => {}
        }
    }
}
