//! An obedient PostgreSQL server without data: it keeps statements, portals and the transaction state, skips what a
//! server skips, and holds answers back as long as a server may.
//! Source: PostgreSQL manual, "Message Flow", and `src/backend/tcop/postgres.c`.

use std::collections::HashMap;

use super::wire::{message, messages, string, strings};

/// Why a message failed: an SQLSTATE.
type Sqlstate = &'static [u8];

const SYNTAX: Sqlstate = b"42601";
const IN_FAILED_TRANSACTION: Sqlstate = b"25P02";
const NO_STATEMENT: Sqlstate = b"26000";
const DUPLICATE_STATEMENT: Sqlstate = b"42P05";
const NO_PORTAL: Sqlstate = b"34000";
const DUPLICATE_PORTAL: Sqlstate = b"42P03";
const VIOLATION: Sqlstate = b"08P01";

/// Rows of each SELECT.
const ROWS: usize = 2;

/// One server connection, from the server's side.
#[derive(Default)]
pub struct Fake {
    statements: HashMap<Vec<u8>, Vec<u8>>,
    portals: HashMap<Vec<u8>, Portal>,
    in_block: bool,
    failed: bool,
    skip: bool,
    /// Messages of the extended protocol came and no Sync after them.
    in_batch: bool,
    copy_in: Option<Protocol>,
    had_duplicate: bool,
    /// Which name was given twice.
    duplicate: Vec<u8>,
    /// A setting that the client has to be told of.
    changed: Option<(&'static [u8], &'static [u8])>,
    input: Vec<u8>,
    held: Vec<u8>,
    out: Vec<u8>,
    gone: bool,
    /// Whether names are checked that the proxy sends.
    checks_names: bool,
    /// The statement name of the last message, when that was a Close of a name like the proxy's.
    closed: Option<Vec<u8>>,
    /// Names under which a Parse was ever seen.
    parsed: Vec<Vec<u8>>,
    /// Everything it was sent.
    heard: Vec<u8>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Protocol {
    Simple,
    Extended,
}

struct Portal {
    text: Vec<u8>,
    row: usize,
    done: bool,
}

/// What a text does. Texts with another meaning are syntax errors here.
enum Does<'a> {
    Nothing,
    Select,
    Fails,
    Other(&'static [u8]),
    Set(&'static [u8], &'static [u8]),
    Begin,
    Commit,
    Rollback,
    Prepare(Vec<u8>, &'a [u8]),
    Execute(Vec<u8>),
    Deallocate(Vec<u8>),
    DeallocateAll,
    DiscardAll,
    CopyIn,
    CopyOut,
}

impl Fake {
    /// A server that hears the proxy only.
    pub fn behind_proxy() -> Self {
        Self { checks_names: true, ..Self::default() }
    }

    /// Bytes from the other side.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.heard.extend_from_slice(bytes);
        let mut input = std::mem::take(&mut self.input);
        input.extend_from_slice(bytes);
        let (found, rest) = messages(&input).expect("well-formed messages");
        for (tag, body) in found {
            if !self.gone {
                if self.checks_names {
                    self.check_name(tag, body);
                }
                self.message(tag, body);
            }
        }
        self.input = rest.to_vec();
    }

    /// Answers that are on their way by now.
    pub fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.out)
    }

    /// Answers held back.
    pub fn held(&self) -> &[u8] {
        &self.held
    }

    /// Everything it was sent.
    pub fn heard(&self) -> &[u8] {
        &self.heard
    }

    /// Names of its statements.
    pub fn names(&self) -> impl Iterator<Item = &[u8]> {
        self.statements.keys().map(Vec::as_slice)
    }

    /// True while it reads CopyData.
    pub fn copies_in(&self) -> bool {
        self.copy_in.is_some()
    }

    /// True once a name was given to two statements.
    pub fn had_duplicate(&self) -> bool {
        self.had_duplicate
    }

    /// True from an error to the Sync after it.
    pub fn skips(&self) -> bool {
        self.skip
    }

    /// True in a transaction that can only be rolled back.
    pub fn has_failed(&self) -> bool {
        self.failed
    }

    /// True between the first message of a batch and its Sync.
    pub fn in_batch(&self) -> bool {
        self.in_batch
    }

    /// True when it waits for nothing but a new request.
    pub fn is_idle(&self) -> bool {
        self.input.is_empty()
            && self.held.is_empty()
            && !self.skip
            && !self.in_block
            && self.copy_in.is_none()
    }

    /// A name that begins as the proxy's own, and is not one of its making, must not reach a server but in the Close
    /// that makes sure of its absence, and right after that.
    fn check_name(&mut self, tag: u8, body: &[u8]) {
        let name = match tag {
            b'P' => string(body),
            b'B' => string(body).and_then(|(_, rest)| string(rest)),
            b'D' | b'C' => body.strip_prefix(b"S").and_then(string),
            _ => None,
        };
        let closed = self.closed.take();
        let Some((name, _)) = name.filter(|(name, _)| name.starts_with(b"_pinion_")) else { return };
        // A name that nobody has, in place of what a client guessed.
        if name == b"_pinion_?" {
            return;
        }
        let ours = matches!(name, b"_pinion_forget" | b"_pinion_taken")
            || name[8..].iter().all(|b| b.is_ascii_hexdigit() || *b == b'_');
        let known = match tag {
            // A name given twice is sent as it is, for the server to refuse it: see `docs/fuzzing.md`.
            b'P' | b'C' => true,
            _ => ours && self.parsed.iter().any(|parsed| parsed == name),
        };
        assert!(
            known || closed.as_deref() == Some(name),
            "a client's {} in a {:?}",
            name.escape_ascii(),
            char::from(tag)
        );
        match tag {
            b'P' => self.parsed.push(name.to_vec()),
            b'C' => self.closed = Some(name.to_vec()),
            _ => {}
        }
    }

    fn message(&mut self, tag: u8, body: &[u8]) {
        if let Some(protocol) = self.copy_in {
            return self.copy(protocol, tag, body);
        }
        self.in_batch |= matches!(tag, b'P' | b'B' | b'D' | b'E' | b'C');
        if self.skip && !matches!(tag, b'S' | b'X') {
            return;
        }
        match tag {
            b'Q' => {
                let done = match string(body) {
                    Some((text, b"")) => self.query(text),
                    _ => Err(VIOLATION),
                };
                self.end_query(done);
            }
            b'F' => {
                let done = if self.failed { Err(IN_FAILED_TRANSACTION) } else { Ok(()) };
                if done.is_ok() {
                    self.say(b'V', &[255; 4]);
                }
                self.end_query(done);
            }
            b'S' => {
                self.skip = false;
                self.in_batch = false;
                self.ready();
            }
            b'H' => self.flush(),
            b'X' => self.gone = true,
            b'd' | b'c' | b'f' => {}
            _ => {
                let done = match tag {
                    b'P' => self.parse(body),
                    b'B' => self.bind(body),
                    b'D' => self.describe(body),
                    b'E' => self.execute(body),
                    b'C' => self.close(body),
                    _ => panic!("a server got message {:?}", char::from(tag)),
                };
                if let Err(code) = done {
                    self.error(code);
                    self.skip = true;
                }
            }
        }
    }

    fn copy(&mut self, protocol: Protocol, tag: u8, body: &[u8]) {
        let done = match tag {
            b'd' | b'H' | b'S' => return,
            b'c' => Ok(()),
            b'f' => Err(b"57014" as Sqlstate),
            _ => Err(VIOLATION),
        };
        self.copy_in = None;
        if done.is_ok() {
            self.complete(b"COPY 1");
        }
        match protocol {
            Protocol::Simple => self.end_query(done),
            Protocol::Extended => {
                if let Err(code) = done {
                    self.error(code);
                    self.skip = true;
                }
            }
        }
        if tag == b'X' {
            self.message(tag, body);
        }
    }

    fn query(&mut self, text: &[u8]) -> Result<(), Sqlstate> {
        self.statements.remove(&b""[..]);
        let texts: Vec<_> = statements(text).collect();
        if texts.iter().any(|text| meaning(text).is_none()) {
            return Err(SYNTAX);
        }
        if texts.is_empty() {
            self.portals.remove(&b""[..]);
            self.say(b'I', b"");
            return Ok(());
        }
        for text in texts {
            self.portals.remove(&b""[..]);
            self.may_run(text)?;
            let mut portal = Portal { text: text.to_vec(), row: 0, done: false };
            if self.returns_rows(text) {
                self.say_row_description();
            }
            self.run(&mut portal, usize::MAX, Protocol::Simple)?;
        }
        Ok(())
    }

    /// The end of a Query or FunctionCall, unless data is to come first.
    fn end_query(&mut self, done: Result<(), Sqlstate>) {
        if let Err(code) = done {
            self.error(code);
        }
        if self.copy_in.is_none() {
            self.ready();
        }
    }

    fn ready(&mut self) {
        let status = match (self.in_block, self.failed) {
            (_, true) => b'E',
            (true, _) => b'T',
            (false, _) => {
                self.portals.clear();
                b'I'
            }
        };
        // Not before, since PostgreSQL 14.
        if let Some((name, value)) = self.changed.take() {
            self.say(b'S', &strings(&[name, value]));
        }
        self.say(b'Z', &[status]);
        self.flush();
    }

    fn parse(&mut self, body: &[u8]) -> Result<(), Sqlstate> {
        let (name, rest) = string(body).ok_or(VIOLATION)?;
        let (text, types) = string(rest).ok_or(VIOLATION)?;
        if types.len() < 2 || types.len() != 2 + 4 * usize::from(u16::from_be_bytes([types[0], types[1]])) {
            return Err(VIOLATION);
        }
        if name.is_empty() {
            self.statements.remove(name);
        }
        let mut texts = statements(text);
        let first = texts.next().unwrap_or_default();
        if meaning(first).is_none() || texts.next().is_some() {
            return Err(SYNTAX);
        }
        self.may_run(first)?;
        if self.statements.contains_key(name) {
            self.had_duplicate = true;
            self.duplicate = name.to_vec();
            return Err(DUPLICATE_STATEMENT);
        }
        self.statements.insert(name.to_vec(), first.to_vec());
        self.say(b'1', b"");
        Ok(())
    }

    fn bind(&mut self, body: &[u8]) -> Result<(), Sqlstate> {
        let (portal, rest) = string(body).ok_or(VIOLATION)?;
        let (name, rest) = string(rest).ok_or(VIOLATION)?;
        let text = self.statements.get(name).ok_or(NO_STATEMENT)?.clone();
        if rest != [0; 6] {
            return Err(VIOLATION);
        }
        self.may_run(&text)?;
        if !portal.is_empty() && self.portals.contains_key(portal) {
            return Err(DUPLICATE_PORTAL);
        }
        self.portals.insert(portal.to_vec(), Portal { text, row: 0, done: false });
        self.say(b'2', b"");
        Ok(())
    }

    fn describe(&mut self, body: &[u8]) -> Result<(), Sqlstate> {
        let (kind, rest) = body.split_first().ok_or(VIOLATION)?;
        let (name, b"") = string(rest).ok_or(VIOLATION)? else { return Err(VIOLATION) };
        let text = match kind {
            b'S' => self.statements.get(name).ok_or(NO_STATEMENT)?.clone(),
            b'P' => self.portals.get(name).ok_or(NO_PORTAL)?.text.clone(),
            _ => return Err(VIOLATION),
        };
        let rows = self.returns_rows(&text);
        // PostgreSQL does describe what has no rows; the proxy may have to prepare it first, which then fails.
        self.may_run(&text)?;
        if *kind == b'S' {
            self.say(b't', &[0, 0]);
        }
        if rows {
            self.say_row_description();
        } else {
            self.say(b'n', b"");
        }
        Ok(())
    }

    fn execute(&mut self, body: &[u8]) -> Result<(), Sqlstate> {
        let (name, rows) = string(body).ok_or(VIOLATION)?;
        let rows: [u8; 4] = rows.try_into().map_err(|_| VIOLATION)?;
        let limit = match i32::from_be_bytes(rows) {
            limit @ 1.. => limit as usize,
            _ => usize::MAX,
        };
        let mut portal = self.portals.remove(name).ok_or(NO_PORTAL)?;
        if let Err(code) = self.may_run(&portal.text) {
            self.portals.insert(name.to_vec(), portal);
            return Err(code);
        }
        let ended_before = !self.in_block;
        let done = self.run(&mut portal, limit, Protocol::Extended);
        // A portal does not outlive its transaction.
        let over = matches!(meaning(&portal.text), Some(Does::Commit | Does::Rollback | Does::DiscardAll));
        if !over || ended_before && !self.failed && !matches!(meaning(&portal.text), Some(Does::DiscardAll)) {
            self.portals.insert(name.to_vec(), portal);
        }
        done
    }

    fn close(&mut self, body: &[u8]) -> Result<(), Sqlstate> {
        let (kind, rest) = body.split_first().ok_or(VIOLATION)?;
        let (name, b"") = string(rest).ok_or(VIOLATION)? else { return Err(VIOLATION) };
        match kind {
            b'S' => drop(self.statements.remove(name)),
            b'P' => drop(self.portals.remove(name)),
            _ => return Err(VIOLATION),
        }
        self.say(b'3', b"");
        Ok(())
    }

    fn may_run(&self, text: &[u8]) -> Result<(), Sqlstate> {
        let ends = matches!(meaning(text), Some(Does::Commit | Does::Rollback | Does::Nothing));
        if self.failed && !ends { Err(IN_FAILED_TRANSACTION) } else { Ok(()) }
    }

    fn returns_rows(&self, text: &[u8]) -> bool {
        matches!(meaning(text), Some(Does::Select | Does::Fails | Does::Execute(_)))
    }

    fn run(&mut self, portal: &mut Portal, limit: usize, protocol: Protocol) -> Result<(), Sqlstate> {
        let text = portal.text.clone();
        let does = meaning(&text).ok_or(SYNTAX)?;
        if std::mem::replace(&mut portal.done, true) && !matches!(does, Does::Select) {
            return Err(b"55000");
        }
        match does {
            Does::Nothing => self.say(b'I', b""),
            Does::Select => {
                let now = limit.min(ROWS - portal.row);
                for _ in 0..now {
                    self.say_row(&text);
                }
                portal.row += now;
                if now == limit {
                    self.say(b's', b"");
                } else {
                    self.complete(format!("SELECT {now}").as_bytes());
                }
            }
            Does::Fails => return Err(b"22012"),
            Does::Other(tag) => self.complete(tag),
            Does::Set(name, value) => {
                self.complete(b"SET");
                self.changed = Some((name, value));
            }
            Does::Begin => {
                if self.in_block {
                    self.notice();
                }
                self.in_block = true;
                self.complete(b"BEGIN");
            }
            Does::Commit | Does::Rollback => {
                if !self.in_block {
                    self.notice();
                } else {
                    self.portals.clear();
                }
                let tag: &[u8] =
                    if self.failed || matches!(does, Does::Rollback) { b"ROLLBACK" } else { b"COMMIT" };
                self.in_block = false;
                self.failed = false;
                self.complete(tag);
            }
            Does::Prepare(name, text) => {
                if self.statements.contains_key(&name) {
                    self.duplicate = name;
                    return Err(DUPLICATE_STATEMENT);
                }
                self.statements.insert(name, text.to_vec());
                self.complete(b"PREPARE");
            }
            Does::Execute(name) => {
                let text = self.statements.get(&name).ok_or(NO_STATEMENT)?.clone();
                if !matches!(meaning(&text), Some(Does::Select)) {
                    return Err(b"42809");
                }
                for _ in 0..ROWS {
                    self.say_row(&text);
                }
                self.complete(format!("SELECT {ROWS}").as_bytes());
            }
            Does::Deallocate(name) => {
                self.statements.remove(&name).ok_or(NO_STATEMENT)?;
                self.complete(b"DEALLOCATE");
            }
            Does::DeallocateAll => {
                self.statements.retain(|name, _| name.is_empty());
                self.complete(b"DEALLOCATE ALL");
            }
            Does::DiscardAll => {
                if self.in_block {
                    return Err(b"25001");
                }
                self.portals.clear();
                self.statements.retain(|name, _| name.is_empty());
                self.complete(b"DISCARD ALL");
            }
            Does::CopyIn => {
                self.say(b'G', &[0, 0, 0]);
                self.flush();
                self.copy_in = Some(protocol);
            }
            Does::CopyOut => {
                self.say(b'H', &[0, 0, 0]);
                for _ in 0..ROWS {
                    self.say(b'd', b"1\n");
                }
                self.say(b'c', b"");
                self.complete(b"COPY 2");
            }
        }
        Ok(())
    }

    fn error(&mut self, code: Sqlstate) {
        self.portals.clear();
        self.failed = self.in_block;
        // The one text that the proxy writes itself must be the server's to the letter.
        let text = match code {
            DUPLICATE_STATEMENT => {
                [b"prepared statement \"", &self.duplicate[..], b"\" already exists"].concat()
            }
            _ => b"no".to_vec(),
        };
        let body = [b"SERROR\0VERROR\0C", code, b"\0M", &text, b"\0\0"].concat();
        self.say(b'E', &body);
        self.flush();
    }

    fn notice(&mut self) {
        self.say(b'N', b"SWARNING\0VWARNING\0C25P01\0Mno\0\0");
    }

    fn complete(&mut self, tag: &[u8]) {
        self.say(b'C', &strings(&[tag]));
    }

    fn say_row_description(&mut self) {
        self.say(b'T', b"\0\x01a\0\0\0\0\0\0\0\0\0\0\x17\0\x04\xff\xff\xff\xff\0\0");
    }

    /// A row that tells which statement it comes from.
    fn say_row(&mut self, text: &[u8]) {
        self.say(b'D', &[b"\0\x01\0\0\0\x01", &text[text.len() - 1..]].concat());
    }

    fn say(&mut self, tag: u8, body: &[u8]) {
        self.held.extend(message(tag, body));
    }

    fn flush(&mut self) {
        self.out.append(&mut self.held);
    }
}

/// The statements of a text.
fn statements(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(|byte| *byte == b';').map(<[u8]>::trim_ascii).filter(|text| !text.is_empty())
}

/// An identifier as the grammar reads it.
fn name(text: &[u8]) -> Vec<u8> {
    match text.strip_prefix(b"\"").and_then(|text| text.strip_suffix(b"\"")) {
        Some(quoted) => quoted.to_vec(),
        None => text.to_ascii_lowercase(),
    }
}

fn meaning(text: &[u8]) -> Option<Does<'_>> {
    let lower = text.to_ascii_lowercase();
    Some(match lower.as_slice() {
        b"" => Does::Nothing,
        b"select 1" | b"select 2" | b"select currval('s')" | b"select f()" => Does::Select,
        b"select 1/0" => Does::Fails,
        b"begin" => Does::Begin,
        b"commit" => Does::Commit,
        b"rollback" => Does::Rollback,
        b"set x.y = 1" => Does::Other(b"SET"),
        b"set standard_conforming_strings = off" => Does::Set(b"standard_conforming_strings", b"off"),
        b"insert into t values (1)" => Does::Other(b"INSERT 0 1"),
        b"listen c" => Does::Other(b"LISTEN"),
        b"discard sequences" => Does::Other(b"DISCARD SEQUENCES"),
        b"deallocate all" => Does::DeallocateAll,
        b"discard all" => Does::DiscardAll,
        b"copy t from stdin" => Does::CopyIn,
        b"copy t to stdout" => Does::CopyOut,
        _ => {
            let mut words = text.splitn(4, |byte| *byte == b' ');
            let verb = words.next()?.to_ascii_lowercase();
            let subject = name(words.next()?);
            match (verb.as_slice(), words.next(), words.next()) {
                (b"execute", None, None) => Does::Execute(subject),
                (b"deallocate", None, None) => Does::Deallocate(subject),
                (b"prepare", Some(b"AS"), Some(rest)) if matches!(meaning(rest), Some(Does::Select)) => {
                    Does::Prepare(subject, rest)
                }
                _ => return None,
            }
        }
    })
}
