//! The other end of the admin API: what `pinion sessions` asks of a Pinion that runs.

use std::{
    fmt::Write as _,
    io::{self, Read, Write},
    net::TcpStream,
    os::unix::net::UnixStream,
    time::Duration,
};

use serde_json::Value;

use crate::config::{AdminConfig, AdminListen};

/// For each read and write.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Asks the Pinion that listens where `config` says. `path` begins with `/`.
/// Errors: for people; the token is in none.
pub fn get(config: &AdminConfig, path: &str) -> Result<Value, String> {
    let token = config.token.as_ref().map(|source| source.read()).transpose().map_err(|e| e.to_string())?;
    let authorization =
        token.map(|token| format!("Authorization: Bearer {}\r\n", &*token)).unwrap_or_default();
    let request =
        format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{authorization}\r\n");
    let answer = match &config.listen {
        AdminListen::Tcp(address) => TcpStream::connect_timeout(address, TIMEOUT)
            .and_then(|stream| {
                stream.set_read_timeout(Some(TIMEOUT))?;
                stream.set_write_timeout(Some(TIMEOUT))?;
                exchange(stream, &request)
            })
            .map_err(|error| format!("no answer from {address}: {error}")),
        AdminListen::Unix(path) => UnixStream::connect(path)
            .and_then(|stream| {
                stream.set_read_timeout(Some(TIMEOUT))?;
                stream.set_write_timeout(Some(TIMEOUT))?;
                exchange(stream, &request)
            })
            .map_err(|error| format!("no answer from {}: {error}", path.display())),
    }?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or("the answer is no HTTP")?;
    let status = head.split(' ').nth(1).unwrap_or_default();
    let body: Value =
        serde_json::from_str(body).map_err(|error| format!("the answer is no JSON: {error}"))?;
    match status {
        "200" => Ok(body),
        _ => Err(format!("{status}: {}", body["error"].as_str().unwrap_or_default())),
    }
}

fn exchange(mut stream: impl Read + Write, request: &str) -> io::Result<String> {
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// A table of the answer to `/sessions`, one line a session.
#[must_use]
pub fn sessions_table(answer: &Value) -> String {
    let header = ["CLIENT", "USER", "DATABASE", "FROM", "STATE", "FOR", "TARGET", "WHY PINNED"];
    let mut rows = vec![header.map(str::to_owned)];
    for session in answer["sessions"].as_array().into_iter().flatten() {
        let text = |name: &str| session[name].as_str().unwrap_or("-").to_owned();
        let pin = &session["pin"];
        let state = text("state");
        let seconds = match pin["for_seconds"].as_f64() {
            Some(pinned) if state == "PINNED" => pinned,
            _ => session["quiet_seconds"].as_f64().unwrap_or_default(),
        };
        rows.push([
            session["client"].to_string(),
            text("user"),
            text("database"),
            text("address"),
            state,
            format!("{seconds:.1}s"),
            text("target"),
            why(pin),
        ]);
    }
    let widths: [usize; 8] =
        std::array::from_fn(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0));
    let mut table = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(widths) {
            // A String takes whatever is written.
            let _ = write!(line, "{cell:width$}  ");
        }
        table.push_str(line.trim_end());
        table.push('\n');
    }
    table
}

/// Reasons, plugin and statement of a pin.
fn why(pin: &Value) -> String {
    let reasons: Vec<&str> =
        pin["reasons"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    if reasons.is_empty() {
        return "-".to_owned();
    }
    let plugin = pin["plugin"].as_str().map(|name| format!(" by plugin {name}")).unwrap_or_default();
    let text = pin["text"].as_str().unwrap_or_default();
    format!("{}{plugin}: {text}", reasons.join(","))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_table_says_who_is_pinned_and_why() {
        let answer = json!({ "sessions": [
            {
                "client": 7, "user": "app", "database": "shop", "address": "10.0.0.1", "state": "PINNED",
                "quiet_seconds": 1.0, "target": "db1:5432",
                "pin": { "reasons": ["temporary-table"], "for_seconds": 61.25, "text": "create temp table t",
                    "plugin": null },
            },
            {
                "client": 12, "user": "app", "database": "", "address": "10.0.0.2", "state": "IDLE",
                "quiet_seconds": 0.0, "target": null, "pin": null,
            },
        ]});
        let lines = [
            "CLIENT  USER  DATABASE  FROM      STATE   FOR    TARGET    WHY PINNED",
            "7       app   shop      10.0.0.1  PINNED  61.2s  db1:5432  temporary-table: create temp table t",
            "12      app             10.0.0.2  IDLE    0.0s   -         -",
        ];
        assert_eq!(sessions_table(&answer).lines().collect::<Vec<_>>(), lines);
        assert_eq!(
            why(&json!({ "reasons": ["unknown"], "text": "x", "plugin": "guard" })),
            "unknown by plugin guard: x"
        );
    }
}
