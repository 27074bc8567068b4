//! The error table: which SQLSTATE a [`FaultKind`] is, and the ErrorResponse that carries it.
//! `docs/errors.md` shows the same table; a test keeps the two together.

use super::{
    super::{Fault, FaultKind, Severity},
    codec::{put_cstr, write_message},
};

/// SQLSTATE of a fault. No `_` arm: a new kind must choose. Source: PostgreSQL manual, "PostgreSQL Error Codes".
#[must_use]
pub const fn sqlstate(kind: FaultKind) -> &'static str {
    match kind {
        FaultKind::BorrowTimeout => "08000",
        FaultKind::TlsRequired | FaultKind::UserMissing | FaultKind::NotAllowed => "28000",
        FaultKind::BadPassword => "28P01",
        FaultKind::TooManyClients | FaultKind::LoginRate => "53300",
        FaultKind::NotSupported => "0A000",
        FaultKind::ProtocolViolation | FaultKind::HandshakeTimeout => "08P01",
        FaultKind::ShuttingDown | FaultKind::LifetimeOver => "57P01",
        FaultKind::IdleTimeout => "57P05",
        FaultKind::Cancelled => "57014",
        FaultKind::ServerLost | FaultKind::TransactionLost | FaultKind::ServerRefused => "08006",
        FaultKind::PluginRejected => "42501",
        FaultKind::PluginFailed => "58000",
        FaultKind::NoTarget => "08000",
        // configuration_limit_exceeded
        FaultKind::TooManyPins => "53400",
        // insufficient_resources
        FaultKind::NotificationsLost => "53000",
        FaultKind::StateLost => "55000",
        FaultKind::Internal => "XX000",
    }
}

/// The SQLSTATE that the client is sent.
#[must_use]
pub fn code(fault: &Fault) -> &str {
    fault.native_code.as_deref().unwrap_or_else(|| sqlstate(fault.kind))
}

/// Appends the ErrorResponse for `fault`.
pub fn write_error(fault: &Fault, out: &mut Vec<u8>) {
    let severity: &[u8] = match fault.severity {
        Severity::Error => b"ERROR",
        Severity::Fatal => b"FATAL",
    };
    let code = code(fault);
    write_message(out, b'E', |body| {
        for (field, text) in
            [(b'S', severity), (b'V', severity), (b'C', code.as_bytes()), (b'M', fault.message.as_bytes())]
        {
            body.push(field);
            put_cstr(body, text);
        }
        if let Some(hint) = &fault.hint {
            body.push(b'H');
            put_cstr(body, hint.as_bytes());
        }
        body.push(0);
    });
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::collections::BTreeSet;

    use super::*;

    const MANUAL: &str = include_str!("../../../../docs/errors.md");

    /// Kind and SQLSTATE of each row of the first table.
    fn rows_of_the_manual() -> BTreeSet<(String, String)> {
        let rows = MANUAL
            .lines()
            .skip_while(|line| !line.starts_with("| kind | SQLSTATE |"))
            .skip(2)
            .take_while(|line| line.starts_with('|'));
        rows.map(|row| {
            let mut cells = row.split('|').map(|cell| cell.trim().trim_matches('`').to_owned());
            (cells.nth(1).unwrap(), cells.next().unwrap())
        })
        .collect()
    }

    #[test]
    fn the_manual_has_every_kind_with_its_code_and_no_other() {
        let ours: BTreeSet<_> =
            FaultKind::ALL.into_iter().map(|kind| (format!("{kind:?}"), sqlstate(kind).to_owned())).collect();
        assert_eq!(ours.len(), FaultKind::ALL.len());
        assert_eq!(rows_of_the_manual(), ours);
    }

    #[test]
    fn an_error_carries_severity_code_and_text() {
        let mut out = Vec::new();
        write_error(&Fault::fatal(FaultKind::TlsRequired, "no"), &mut out);
        assert_eq!(out, b"E\0\0\0\x1eSFATAL\0VFATAL\0C28000\0Mno\0\0");
    }
}
