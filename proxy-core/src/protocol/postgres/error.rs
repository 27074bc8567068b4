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
        FaultKind::ServerLost | FaultKind::ServerRefused => "08006",
        FaultKind::Internal => "XX000",
    }
}

/// Appends the ErrorResponse for `fault`.
pub fn write_error(fault: &Fault, out: &mut Vec<u8>) {
    let severity: &[u8] = match fault.severity {
        Severity::Error => b"ERROR",
        Severity::Fatal => b"FATAL",
    };
    let code = fault.native_code.as_deref().unwrap_or_else(|| sqlstate(fault.kind));
    write_message(out, b'E', |body| {
        for (field, text) in
            [(b'S', severity), (b'V', severity), (b'C', code.as_bytes()), (b'M', fault.message.as_bytes())]
        {
            body.push(field);
            put_cstr(body, text);
        }
        body.push(0);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_carries_severity_code_and_text() {
        let mut out = Vec::new();
        write_error(&Fault::fatal(FaultKind::TlsRequired, "no"), &mut out);
        assert_eq!(out, b"E\0\0\0\x1eSFATAL\0VFATAL\0C28000\0Mno\0\0");
    }
}
