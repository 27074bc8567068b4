//! An obedient MySQL server: it keeps statements, cursors, long data, transactions and files as a server does, but has
//! no data. What it answers shows what it was sent. Shapes are those of the MySQL Source Documentation.

use std::collections::BTreeMap;

use pinion::protocol::mysql::codec::{
    Capabilities, EOF, ERR, EofPacket, HEADER_BYTES, OK, OkPacket, Status, put_lenenc, put_lenenc_bytes,
    track, write_err, write_packet,
};

/// Rows of each result.
const ROWS: usize = 3;

/// One server connection.
pub struct Fake {
    agreed: Capabilities,
    statements: BTreeMap<u32, Statement>,
    last_id: u32,
    in_transaction: bool,
    multi_statements: bool,
    input: Vec<u8>,
    out: Vec<u8>,
    heard: Vec<u8>,
    /// Of the next packet, whoever sends it.
    seq: u8,
    file: Option<File>,
    quit: bool,
}

#[derive(Default)]
struct Statement {
    text: Vec<u8>,
    types: Option<Vec<u8>>,
    long: BTreeMap<u16, Vec<u8>>,
    /// Rows that are left.
    cursor: Option<usize>,
}

/// A file that a client sends, and the statements behind the one that asked for it.
struct File {
    bytes: usize,
    rest: Vec<Vec<u8>>,
}

impl Fake {
    /// A connection on which this was agreed.
    pub fn new(agreed: Capabilities) -> Self {
        Self {
            agreed,
            statements: BTreeMap::new(),
            last_id: 0,
            in_transaction: false,
            multi_statements: agreed.contains(Capabilities::MULTI_STATEMENTS),
            input: Vec::new(),
            out: Vec::new(),
            heard: Vec::new(),
            seq: 0,
            file: None,
            quit: false,
        }
    }

    /// Hears bytes and answers each whole packet.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.input.extend_from_slice(bytes);
        self.heard.extend_from_slice(bytes);
        while let Some(&[a, b, c, seq]) = self.input.first_chunk() {
            let end = HEADER_BYTES + u32::from_le_bytes([a, b, c, 0]) as usize;
            if self.input.len() < end {
                return;
            }
            let payload = self.input[HEADER_BYTES..end].to_vec();
            self.input.drain(..end);
            self.seq = seq.wrapping_add(1);
            if !self.quit {
                self.hear(&payload);
            }
        }
    }

    /// What it has said since it was asked last.
    pub fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.out)
    }

    /// All it has heard.
    pub fn heard(&self) -> &[u8] {
        &self.heard
    }

    /// Nothing of a client is left but statements.
    pub fn is_idle(&self) -> bool {
        let quiet = |one: &Statement| one.long.is_empty() && one.cursor.is_none();
        !self.in_transaction
            && self.file.is_none()
            && self.input.is_empty()
            && self.statements.values().all(quiet)
    }

    /// How many statements it keeps.
    pub fn prepared(&self) -> usize {
        self.statements.len()
    }

    /// It waits for a file, and this is the number of the file's next packet.
    pub fn wants_file(&self) -> Option<u8> {
        self.file.as_ref().map(|_| self.seq)
    }

    fn status(&self) -> Status {
        Status::AUTOCOMMIT.with(Status::IN_TRANS, self.in_transaction)
    }

    fn packet(&mut self, payload: &[u8]) {
        self.seq = write_packet(&mut self.out, self.seq, |body| body.extend_from_slice(payload));
    }

    fn ok(&mut self, affected_rows: u64, more: bool, session_state: &[u8]) {
        let status = self.status().with(Status::MORE_RESULTS, more);
        let status = status.with(Status::SESSION_STATE_CHANGED, !session_state.is_empty());
        let ok = OkPacket { affected_rows, status, session_state, ..OkPacket::default() };
        self.seq = ok.write(OK, self.seq, self.agreed, &mut self.out);
    }

    fn error(&mut self, code: u16, state: &str, message: &str) {
        self.seq = write_err(code, state, message, self.seq, self.agreed, &mut self.out);
    }

    /// The end of columns (`between`) or of rows.
    fn end(&mut self, status: Status) {
        self.seq = if self.agreed.contains(Capabilities::DEPRECATE_EOF) {
            let end = OkPacket { status, ..OkPacket::default() };
            end.write(EOF, self.seq, self.agreed, &mut self.out)
        } else {
            EofPacket { warnings: 0, status }.write(self.seq, self.agreed, &mut self.out)
        };
    }

    fn column(&mut self) {
        let mut body = Vec::new();
        for text in [b"def".as_slice(), b"", b"", b"", b"n", b"n"] {
            put_lenenc_bytes(&mut body, text);
        }
        body.extend_from_slice(&[0x0c, 63, 0, 11, 0, 0, 0, 3, 0, 0, 0, 0, 0]);
        self.packet(&body);
    }

    fn columns(&mut self, n: usize) {
        for _ in 0..n {
            self.column();
        }
        if n > 0 && !self.agreed.contains(Capabilities::DEPRECATE_EOF) {
            let status = self.status();
            self.end(status);
        }
    }

    fn rows(&mut self, n: usize, front: &[u8], shown: &[u8]) {
        for _ in 0..n {
            let mut row = front.to_vec();
            put_lenenc_bytes(&mut row, shown);
            self.packet(&row);
        }
    }

    fn result(&mut self, shown: &[u8], binary: bool, more: bool) {
        self.packet(&[1]);
        self.columns(1);
        let front: &[u8] = if binary { &[0, 0] } else { &[] };
        self.rows(ROWS, front, shown);
        let status = self.status().with(Status::MORE_RESULTS, more);
        self.end(status);
    }

    fn hear(&mut self, payload: &[u8]) {
        if let Some(mut file) = self.file.take() {
            file.bytes += payload.len();
            if !payload.is_empty() {
                self.file = Some(file);
                return;
            }
            self.ok(file.bytes as u64, !file.rest.is_empty(), &[]);
            self.run_all(file.rest);
            return;
        }
        let Some((command, body)) = payload.split_first() else { return self.error(1043, "08S01", "empty") };
        match command {
            0x01 => self.quit = true,
            0x02 => {
                let entry = [[body.len() as u8].as_slice(), body].concat();
                let mut change = vec![track::SCHEMA];
                put_lenenc_bytes(&mut change, &entry);
                self.ok(0, false, if body.len() < 100 { &change } else { &[] });
            }
            0x03 => self.query(body),
            0x04 => {
                self.column();
                let status = self.status();
                self.end(status);
            }
            0x09 => self.packet(b"Uptime: 1"),
            0x0e => self.ok(0, false, &[]),
            0x16 => self.prepare(body),
            0x17 => self.execute(body),
            0x18 => {
                if let (Some(statement), Some(&[a, b])) =
                    (self.statement(body), body.get(4..6).and_then(<[u8]>::first_chunk))
                {
                    let long = statement.long.entry(u16::from_le_bytes([a, b])).or_default();
                    long.extend_from_slice(&body[6..]);
                }
            }
            0x19 => {
                if let Some(id) = id(body) {
                    self.statements.remove(&id);
                }
            }
            0x1a => match self.statement(body) {
                Some(statement) => {
                    statement.long.clear();
                    statement.cursor = None;
                    self.ok(0, false, &[]);
                }
                None => self.unknown("mysqld_stmt_reset", body),
            },
            0x1b => {
                self.multi_statements = body == [0, 0];
                let status = self.status();
                self.end(status);
            }
            0x1c => self.fetch(body),
            0x1f => {
                self.statements.clear();
                self.in_transaction = false;
                self.ok(0, false, &[]);
            }
            _ => self.error(1047, "08S01", "Unknown command"),
        }
    }

    fn statement(&mut self, body: &[u8]) -> Option<&mut Statement> {
        self.statements.get_mut(&id(body)?)
    }

    fn unknown(&mut self, command: &str, body: &[u8]) {
        let id = id(body).unwrap_or_default();
        self.error(1243, "HY000", &format!("Unknown prepared statement handler ({id}) given to {command}"));
    }

    fn query(&mut self, text: &[u8]) {
        let parts: Vec<Vec<u8>> = text.split(|byte| *byte == b';').map(<[u8]>::to_vec).collect();
        if parts.len() > 1 && !self.multi_statements {
            return self.error(1064, "42000", "You have an error in your SQL syntax");
        }
        self.run_all(parts);
    }

    fn run_all(&mut self, mut parts: Vec<Vec<u8>>) {
        while !parts.is_empty() {
            let part = parts.remove(0);
            let more = !parts.is_empty();
            match part.trim_ascii() {
                b"BEGIN" => {
                    self.in_transaction = true;
                    self.ok(0, more, &[]);
                }
                b"COMMIT" | b"ROLLBACK" => {
                    self.in_transaction = false;
                    self.ok(0, more, &[]);
                }
                b"LOAD DATA LOCAL INFILE 'f' INTO TABLE t"
                    if self.agreed.contains(Capabilities::LOCAL_FILES) =>
                {
                    self.packet(b"\xfbf");
                    self.file = Some(File { bytes: 0, rest: parts });
                    return;
                }
                b"CALL p()" => {
                    self.result(b"of p", false, true);
                    self.ok(0, more, &[]);
                }
                text if text.starts_with(b"SELECT ") => {
                    let text = text.to_vec();
                    self.result(&text, false, more);
                }
                text if text.starts_with(b"SET ") || text.starts_with(b"INSERT ") => self.ok(1, more, &[]),
                _ => return self.error(1064, "42000", "You have an error in your SQL syntax"),
            }
        }
    }

    fn prepare(&mut self, text: &[u8]) {
        if !text.starts_with(b"SELECT ") && !text.starts_with(b"INSERT ") {
            return self.error(1064, "42000", "You have an error in your SQL syntax");
        }
        self.last_id += 1;
        let parameters = parameters(text);
        let columns = usize::from(text.starts_with(b"SELECT "));
        let mut answer = vec![0];
        answer.extend_from_slice(&self.last_id.to_le_bytes());
        answer.extend_from_slice(&(columns as u16).to_le_bytes());
        answer.extend_from_slice(&(parameters as u16).to_le_bytes());
        answer.extend_from_slice(&[0, 0, 0]);
        self.packet(&answer);
        self.columns(parameters);
        self.columns(columns);
        self.statements.insert(self.last_id, Statement { text: text.to_vec(), ..Statement::default() });
    }

    fn execute(&mut self, body: &[u8]) {
        let Some(statement) = self.statement(body) else {
            return self.unknown("mysqld_stmt_execute", body);
        };
        statement.cursor = None;
        let long = std::mem::take(&mut statement.long);
        let n = parameters(&statement.text);
        let flags = body.get(4).copied().unwrap_or_default();
        let mut rest = body.get(9..).unwrap_or_default();
        if n > 0 {
            let Some((nulls_and_flag, after)) = rest.split_at_checked(n.div_ceil(8) + 1) else {
                return self.error(1210, "HY000", "Incorrect arguments to mysqld_stmt_execute");
            };
            rest = after;
            if nulls_and_flag.last() == Some(&1) {
                let Some((types, after)) = rest.split_at_checked(2 * n) else {
                    return self.error(1210, "HY000", "Incorrect arguments to mysqld_stmt_execute");
                };
                statement.types = Some(types.to_vec());
                rest = after;
            }
        }
        // All that a server could make of it.
        let types = statement.types.clone().unwrap_or_default();
        let mut shown = statement.text.clone();
        for part in [types.as_slice(), rest].into_iter().chain(long.values().map(Vec::as_slice)) {
            shown.push(b'|');
            shown.extend_from_slice(part);
        }
        if n > 0 && types.is_empty() {
            return self.error(1210, "HY000", "Incorrect arguments to mysqld_stmt_execute");
        }
        if !shown.starts_with(b"SELECT ") {
            return self.ok(shown.len() as u64, false, &[]);
        }
        if flags & 7 == 0 {
            return self.result(&shown, true, false);
        }
        statement.cursor = Some(ROWS);
        let status = self.status() | Status::CURSOR_EXISTS;
        self.packet(&[1]);
        self.column();
        self.end(status);
    }

    fn fetch(&mut self, body: &[u8]) {
        let wanted =
            body.get(4..8).and_then(<[u8]>::first_chunk).map_or(0, |n| u32::from_le_bytes(*n) as usize);
        let Some(statement) = self.statement(body) else { return self.unknown("mysqld_stmt_fetch", body) };
        let text = statement.text.clone();
        let Some(left) = statement.cursor else {
            let id = id(body).unwrap_or_default();
            return self.error(1421, "HY000", &format!("The statement ({id}) has no open cursor"));
        };
        let now = wanted.min(left);
        // A server finds the end when it looks for more than there is.
        let over = wanted > left;
        statement.cursor = (!over).then_some(left - now);
        self.rows(now, &[0, 0], &text);
        let status = self.status() | if over { Status::LAST_ROW_SENT } else { Status::CURSOR_EXISTS };
        self.end(status);
    }
}

fn id(body: &[u8]) -> Option<u32> {
    body.first_chunk().map(|bytes| u32::from_le_bytes(*bytes))
}

/// How many parameters a text has.
pub fn parameters(text: &[u8]) -> usize {
    text.iter().filter(|byte| **byte == b'?').count()
}

/// Whole packets at the front of `bytes`, and what is behind them.
pub fn whole(mut bytes: &[u8]) -> (Vec<&[u8]>, &[u8]) {
    let mut found = Vec::new();
    while let Some(&[a, b, c, _]) = bytes.first_chunk() {
        let end = HEADER_BYTES + u32::from_le_bytes([a, b, c, 0]) as usize;
        let Some((packet, rest)) = bytes.split_at_checked(end) else { break };
        found.push(packet);
        bytes = rest;
    }
    (found, bytes)
}

/// True for an ERR packet.
pub fn is_error(packet: &[u8]) -> bool {
    packet.get(HEADER_BYTES) == Some(&ERR)
}

/// A command as a packet.
pub fn command(code: u8, body: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    write_packet(&mut out, 0, |packet| {
        packet.push(code);
        packet.extend_from_slice(body);
    });
    out
}

/// An execution of statement `id` with `n` parameters; with their types or without.
pub fn execution(id: u32, n: usize, flags: u8, typed: bool, value: &[u8]) -> Vec<u8> {
    let mut body = [&id.to_le_bytes()[..], &[flags, 1, 0, 0, 0]].concat();
    if n > 0 {
        body.extend(vec![0; n.div_ceil(8)]);
        body.push(u8::from(typed));
        if typed {
            body.extend([0xfd, 0].repeat(n));
        }
        for _ in 0..n {
            put_lenenc(&mut body, value.len() as u64);
            body.extend_from_slice(value);
        }
    }
    command(0x17, &body)
}
