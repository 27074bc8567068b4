//! Texts so plain that every dialect reads them alike.

/// Longest text that is looked at.
const MAX_BYTES: usize = 1024;

/// The words and commas of a text that consists of nothing else, in lower case: plain comments count as space, and one
/// semicolon may stand at the end. `None` for any other text.
pub(super) fn plain_words(text: &[u8]) -> Option<Vec<String>> {
    if text.len() > MAX_BYTES || !text.is_ascii() {
        return None;
    }
    let mut words = Vec::new();
    let mut rest = std::str::from_utf8(text).ok()?.trim_ascii_end();
    rest = rest.strip_suffix(';').unwrap_or(rest);
    loop {
        rest = rest.trim_start_matches([' ', '\t', '\n', '\r']);
        let Some(first) = rest.chars().next() else { return Some(words) };
        if let Some(comment) = rest.strip_prefix("/*") {
            let (inside, after) = comment.split_once("*/")?;
            // Others are read by a server, or nest.
            if inside.starts_with(['!', '+', 'M']) || inside.contains("/*") {
                return None;
            }
            rest = after;
            continue;
        }
        let end = match first {
            ',' => 1,
            'a'..='z' | 'A'..='Z' => {
                rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(rest.len())
            }
            _ => return None,
        };
        let (word, after) = rest.split_at_checked(end)?;
        words.push(word.to_ascii_lowercase());
        rest = after;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_texts_of_plain_words_have_words() {
        let check = |text: &str, want: Option<&str>| {
            let words = plain_words(text.as_bytes()).map(|words| words.join(" "));
            assert_eq!(words.as_deref(), want, "{text}");
        };
        check("BEGIN", Some("begin"));
        check("  begin/* x */Work ;\n", Some("begin work"));
        check("START TRANSACTION READ ONLY, ISOLATION", Some("start transaction read only , isolation"));
        check("", Some(""));
        check(";", Some(""));
        for text in [
            "BEGIN;;",
            "BEGIN; COMMIT",
            "START TRANSACTION /*!40100 WITH CONSISTENT SNAPSHOT */",
            "START TRANSACTION /*M!100100 READ WRITE */",
            "BEGIN /* /* */ */",
            "BEGIN /* x",
            "BEGIN -- x",
            "BEGIN # x",
            "BEGIN 'x'",
            "`BEGIN`",
            "BEGIN\u{b}WORK",
            "BEGIN\u{e9}",
        ] {
            check(text, None);
        }
        check(&format!("BEGIN{}", " ".repeat(MAX_BYTES)), None);
    }
}
