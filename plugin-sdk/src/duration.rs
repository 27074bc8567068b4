//! Durations in configuration: `"250ms"`, `"2s"`, `"5m"`, `"1h"`, `"7d"`, as in the proxy's own.
//!
//! ```
//! #[derive(serde::Deserialize)]
//! struct Config {
//!     #[serde(deserialize_with = "pinion_plugin::duration::deserialize")]
//!     patience: std::time::Duration,
//! }
//! # let config: Config = pinion_plugin::serde_json::from_str(r#"{"patience": "2s"}"#).unwrap();
//! # assert_eq!(config.patience.as_secs(), 2);
//! ```

use std::{fmt, time::Duration};

use serde::{Deserializer, de};

/// Reads a duration. One number and one unit; a fraction is not taken.
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    struct Text;
    impl de::Visitor<'_> for Text {
        type Value = Duration;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a duration such as \"250ms\", \"2s\", \"5m\" or \"1h\"")
        }
        fn visit_str<E: de::Error>(self, text: &str) -> Result<Duration, E> {
            parse(text).ok_or_else(|| E::invalid_value(de::Unexpected::Str(text), &self))
        }
    }
    deserializer.deserialize_str(Text)
}

fn parse(text: &str) -> Option<Duration> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..digits].parse().ok()?;
    let milliseconds = match text[digits..].trim_start() {
        "ms" => 1,
        "s" => 1000,
        "m" | "min" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    Some(Duration::from_millis(number.checked_mul(milliseconds)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_and_a_unit_make_a_duration() {
        assert_eq!(parse("0s"), Some(Duration::ZERO));
        assert_eq!(parse("250ms"), Some(Duration::from_millis(250)));
        assert_eq!(parse("5 m"), Some(Duration::from_secs(300)));
        for wrong in
            ["", "2", "s", "-1s", "1.5s", "2 parsecs", "99999999999999999999s", "18446744073709551615d"]
        {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }
}
