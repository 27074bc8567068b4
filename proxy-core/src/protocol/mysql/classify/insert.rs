//! The ids that a statement gives itself.

use super::{
    facts::{self, tokens},
    lexer::{Kind, LexMode},
};

/// A longer text is not looked into: an answer is not worth it. In bytes.
const LIMIT: usize = 64 * 1024;

/// The values of an `INSERT … VALUES`, as far as they could be ids: any other id in its OK packet was generated.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct GivenIds {
    integers: Vec<u64>,
    /// `LAST_INSERT_ID()` is one.
    last: bool,
    /// The time of day is one.
    time: bool,
}

/// A time as a number, `YYYYMMDDhhmmss`, is longer.
const LEAST_TIME: u64 = 10_000_000_000_000;

impl GivenIds {
    /// True for what gives none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.integers.is_empty() && !self.last && !self.time
    }

    /// True when `id` may have been given by the statement itself, with `last` for `LAST_INSERT_ID()`.
    #[must_use]
    pub fn may_be(&self, id: u64, last: u64) -> bool {
        self.integers.contains(&id) || (self.last && id == last) || (self.time && id >= LEAST_TIME)
    }
}

/// What an `INSERT` or `REPLACE` with `VALUES` gives; nothing for `UPDATE` and `DELETE`. `None` when values may come from
/// elsewhere, or ids of rows that were there before.
#[must_use]
pub fn given_ids(text: &[u8], mode: LexMode) -> Option<GivenIds> {
    if text.len() > LIMIT {
        return None;
    }
    let tokens = tokens(text, mode)?;
    let [statement] = &facts::split(&tokens)[..] else { return None };
    let (verb, rest) = statement.split_first()?;
    match &*verb.name {
        "update" | "delete" if verb.kind == Kind::Word => return Some(GivenIds::default()),
        "insert" | "replace" if verb.kind == Kind::Word => {}
        _ => return None,
    }
    let values = rest.iter().position(|token| token.kind == Kind::Word && is_values(&token.name))?;
    let (front, values) = rest.split_at_checked(values + 1)?;
    if front.iter().any(|token| token.kind == Kind::Word && matches!(&*token.name, "select" | "set")) {
        return None;
    }
    let mut given = GivenIds::default();
    for token in values {
        let bytes = text.get(token.start..token.end)?;
        match token.kind {
            Kind::Number => given.integers.push(std::str::from_utf8(bytes).ok()?.parse().ok()?),
            Kind::Str => given.integers.extend(leading_integer(bytes)?),
            Kind::Word => match &*token.name {
                "null" | "default" | "false" => {}
                "true" => given.integers.push(1),
                "last_insert_id" => given.last = true,
                "now" | "current_timestamp" | "localtimestamp" | "utc_timestamp" | "sysdate" => {
                    given.time = true
                }
                _ => return None,
            },
            Kind::Other | Kind::Operator if matches!(bytes, b"(" | b")" | b",") => {}
            _ => return None,
        }
    }
    // Of an argument nobody can tell.
    let has_argument = values.windows(3).any(|three| {
        let [function, open, argument] = three else { return false };
        is_function(&function.name) && &*open.name == "(" && &*argument.name != ")"
    });
    (!has_argument).then_some(given)
}

fn is_function(word: &str) -> bool {
    !matches!(word, "" | "(" | ")" | "," | "value" | "values")
}

fn is_values(word: &str) -> bool {
    matches!(word, "values" | "value")
}

/// What a string is as a number, if it begins with digits. `None` when that is not easily said.
fn leading_integer(quoted: &[u8]) -> Option<Option<u64>> {
    let inside = quoted.get(1..quoted.len().checked_sub(1)?)?;
    let inside = inside.trim_ascii_start();
    let digits = inside.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let (digits, rest) = inside.split_at_checked(digits)?;
    match (digits, rest.first()) {
        ([], Some(b'+' | b'.' | b'\\')) | ([_, ..], Some(b'.' | b'e' | b'E' | b'\\')) => None,
        ([], _) => Some(None),
        _ => Some(Some(std::str::from_utf8(digits).ok()?.parse().ok()?)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_text_itself_gives_can_be_an_explicit_id() {
        let given =
            |integers: &[u64]| Some(GivenIds { integers: integers.to_vec(), last: false, time: false });
        for (text, want) in [
            ("INSERT INTO t VALUES (NULL, 'a'), (DEFAULT, '7')", given(&[7])),
            ("insert into t (id, n) values (5, 'x''y'), (6, '8 apples')", given(&[5, 6, 8])),
            ("REPLACE t VALUE (TRUE, FALSE)", given(&[1])),
            ("INSERT INTO `values` (`select`) VALUES (3)", given(&[3])),
            ("UPDATE t SET a = LAST_INSERT_ID(a + 1)", given(&[])),
            ("DELETE FROM t WHERE id = 5", given(&[])),
            (
                "INSERT INTO t VALUES (LAST_INSERT_ID(), NOW(), 2)",
                Some(GivenIds { integers: vec![2], last: true, time: true }),
            ),
            ("INSERT INTO t VALUES (LAST_INSERT_ID(5))", None),
            ("INSERT INTO t VALUES (NOW(6), 1)", None),
            ("INSERT INTO t VALUES (1 + 1)", None),
            ("INSERT INTO t VALUES (-5)", None),
            ("INSERT INTO t VALUES (5.4)", None),
            ("INSERT INTO t VALUES ('5e3')", None),
            ("INSERT INTO t VALUES ('.5e1')", None),
            (r"INSERT INTO t VALUES ('\65')", None),
            ("INSERT INTO t VALUES (x'05')", None),
            ("INSERT INTO t VALUES (?)", None),
            ("INSERT INTO t VALUES (@a)", None),
            ("INSERT INTO t VALUES (f())", None),
            ("INSERT INTO t VALUES (_utf8mb4'5')", None),
            ("INSERT INTO t SET id = 5", None),
            ("INSERT INTO t SELECT 5", None),
            ("INSERT INTO t (id) SELECT 5 FROM (VALUES (1)) v", None),
            ("INSERT INTO t VALUES (NULL) ON DUPLICATE KEY UPDATE a = 1", None),
            ("INSERT INTO t VALUES (NULL) RETURNING id", None),
            ("INSERT INTO t VALUES (NULL); SELECT 1", None),
            ("SELECT 1", None),
            ("CALL p()", None),
        ] {
            assert_eq!(given_ids(text.as_bytes(), LexMode::default()), want, "{text}");
        }
        let given = GivenIds { integers: vec![3], last: true, time: true };
        let may_be = [3, 4, 20_261_231_235_959, 5].map(|id| given.may_be(id, 4));
        assert_eq!(may_be, [true, true, true, false]);
        let long = format!("INSERT INTO t VALUES ('{}')", "x".repeat(LIMIT));
        assert_eq!(given_ids(long.as_bytes(), LexMode::default()), None);
    }
}
