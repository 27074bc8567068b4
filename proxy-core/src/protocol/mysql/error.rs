//! The error table: which number and SQLSTATE a [`FaultKind`] is, and the ERR packet that carries it.
//! `docs/errors.md` shows the same table; a test keeps the two together.

use super::{
    super::{Fault, FaultKind},
    codec::{Capabilities, write_err},
};

/// Number and SQLSTATE of a fault. No `_` arm: a new kind must choose. Source: MySQL Error Message Reference, "Server
/// Error Message Reference"; 9501 and 3159 are RDS Proxy's.
#[must_use]
pub const fn number(kind: FaultKind) -> (u16, &'static str) {
    match kind {
        FaultKind::BorrowTimeout | FaultKind::NoTarget => (9501, "HY000"),
        FaultKind::TlsRequired => (3159, "HY000"),
        FaultKind::BadPassword | FaultKind::UserMissing => (1045, "28000"),
        FaultKind::TooManyClients | FaultKind::LoginRate => (1040, "HY000"),
        FaultKind::NotAllowed => (1130, "HY000"),
        FaultKind::NotSupported => (1235, "42000"),
        FaultKind::ProtocolViolation => (1835, "HY000"),
        FaultKind::HandshakeTimeout => (1159, "08S01"),
        FaultKind::ShuttingDown | FaultKind::LifetimeOver => (1053, "08S01"),
        FaultKind::IdleTimeout => (4031, "HY000"),
        FaultKind::Cancelled => (1317, "70100"),
        // ER_USER_LIMIT_REACHED
        FaultKind::TooManyPins => (1226, "42000"),
        FaultKind::PluginRejected => (1227, "42000"),
        // What retry loops know as a transaction that was rolled back.
        FaultKind::TransactionLost => (1213, "40001"),
        // The class is that of a connection which is of no more use.
        FaultKind::ServerLost => (1105, "08S01"),
        // Of notifications nobody here has heard.
        FaultKind::ServerRefused
        | FaultKind::PluginFailed
        | FaultKind::NotificationsLost
        | FaultKind::StateLost
        | FaultKind::Internal => (1105, "HY000"),
    }
}

/// `ER_HANDSHAKE_ERROR`.
pub(super) const BAD_HANDSHAKE: (u16, &str) = (1043, "08S01");
/// `ER_NET_PACKETS_OUT_OF_ORDER`.
pub(super) const OUT_OF_ORDER: (u16, &str) = (1156, "08S01");
/// `ER_NOT_SUPPORTED_AUTH_MODE`.
pub(super) const OLD_CLIENT: (u16, &str) = (1251, "08004");

/// In place of an error number, MariaDB's progress report: a client goes on waiting for the answer behind it. Source:
/// MariaDB knowledge base, "Progress Reporting".
const PROGRESS_REPORT: u16 = 0xFFFF;

/// `fault` with a number and an SQLSTATE of its own.
#[must_use]
pub fn with_code(fault: Fault, (number, sqlstate): (u16, &str)) -> Fault {
    Fault { native_code: Some(sqlstate.to_owned()), native_number: Some(number), ..fault }
}

/// Number and SQLSTATE that the client is sent.
#[must_use]
pub fn code(fault: &Fault) -> (u16, &str) {
    let (number, state) = number(fault.kind);
    let own = fault.native_number.filter(|number| !matches!(*number, 0 | PROGRESS_REPORT));
    (own.unwrap_or(number), fault.native_code.as_deref().unwrap_or(state))
}

/// What the client is told: the message, and the hint behind it, since an ERR packet has no place for one.
#[must_use]
pub fn text(fault: &Fault) -> String {
    match &fault.hint {
        Some(hint) => format!("{} ({hint})", fault.message),
        None => fault.message.clone().into_owned(),
    }
}

/// Appends the ERR packet for `fault`. Returns the sequence number that comes next.
pub fn write_error(fault: &Fault, seq: u8, agreed: Capabilities, out: &mut Vec<u8>) -> u8 {
    let (number, sqlstate) = code(fault);
    write_err(number, sqlstate, &text(fault), seq, agreed, out)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::collections::BTreeSet;

    use super::*;

    const MANUAL: &str = include_str!("../../../../docs/errors.md");

    /// Kind, number and SQLSTATE of each row of the MySQL table.
    fn rows_of_the_manual() -> BTreeSet<(String, String, String)> {
        let rows = MANUAL
            .lines()
            .skip_while(|line| !line.starts_with("| kind | number | SQLSTATE |"))
            .skip(2)
            .take_while(|line| line.starts_with('|'));
        rows.map(|row| {
            let mut cells = row.split('|').map(|cell| cell.trim().trim_matches('`').to_owned());
            (cells.nth(1).unwrap(), cells.next().unwrap(), cells.next().unwrap())
        })
        .collect()
    }

    #[test]
    fn the_manual_has_every_kind_with_its_number_and_no_other() {
        let ours: BTreeSet<_> = FaultKind::ALL
            .into_iter()
            .map(|kind| {
                let (number, state) = number(kind);
                (format!("{kind:?}"), number.to_string(), state.to_owned())
            })
            .collect();
        assert_eq!(ours.len(), FaultKind::ALL.len());
        assert_eq!(rows_of_the_manual(), ours);
    }

    /// All pairs of a number and an SQLSTATE in literals of a source text.
    fn codes_in(source: &str) -> BTreeSet<(String, String)> {
        let dense: String = source.chars().filter(|c| !c.is_whitespace()).collect();
        let parts: Vec<&str> = dense.split('"').collect();
        let pairs = parts.windows(2).filter_map(|pair| {
            let number = pair[0].strip_suffix(',')?.rsplit(|c: char| !c.is_ascii_digit()).next()?;
            let is_state =
                pair[1].len() == 5 && pair[1].bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit());
            (is_state && number.len() == 4).then(|| (number.to_owned(), pair[1].to_owned()))
        });
        pairs.collect()
    }

    #[test]
    fn the_manual_has_every_error_of_a_command_answered_here() {
        let rows = MANUAL
            .lines()
            .skip_while(|line| !line.starts_with("| number | SQLSTATE | message | when |"))
            .skip(2)
            .take_while(|line| line.starts_with('|'));
        let told: BTreeSet<_> = rows
            .map(|row| {
                let mut cells = row.split('|').map(|cell| cell.trim().trim_matches('`').to_owned());
                (cells.nth(1).unwrap(), cells.next().unwrap())
            })
            .collect();
        let ours = codes_in(concat!(
            include_str!("tracker.rs"),
            include_str!("tracker/commands.rs"),
            include_str!("tracker/prepared.rs")
        ));
        assert!(ours.len() > 8, "{ours:?}");
        assert_eq!(told, ours);
    }

    #[test]
    fn an_error_carries_number_state_and_text() {
        let mut fault = Fault::fatal(FaultKind::TlsRequired, "no");
        let mut out = Vec::new();
        assert_eq!(write_error(&fault, 2, Capabilities::PROTOCOL_41, &mut out), 3);
        assert_eq!(out, b"\x0b\0\0\x02\xff\x57\x0c#HY000no");
        out.clear();
        write_error(&fault, 0, Capabilities::NONE, &mut out);
        assert_eq!(out, b"\x05\0\0\0\xff\x57\x0cno");
        for (number, state, want) in [
            (Some(1049), Some("42000"), (1049, "42000")),
            (None, Some("45000"), (3159, "45000")),
            (Some(4025), None, (4025, "HY000")),
            (Some(0), None, (3159, "HY000")),
            (Some(0xFFFF), None, (3159, "HY000")),
        ] {
            fault.native_number = number;
            fault.native_code = state.map(str::to_owned);
            assert_eq!(code(&fault), want, "{number:?} {state:?}");
        }
        fault.hint = Some("use TLS".into());
        assert_eq!(text(&fault), "no (use TLS)");
    }
}
