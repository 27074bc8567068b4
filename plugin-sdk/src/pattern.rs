//! Names and patterns in configuration.

use std::fmt;

/// A name, or a pattern in which each `*` stands for any run of characters, none included. In configuration it is a
/// string.
///
/// ```
/// use pinion_plugin::Pattern;
///
/// assert!(Pattern::new("audit.*").matches("audit.log"));
/// assert!(!Pattern::new("audit.*").matches("Audit.log"));
/// assert!(Pattern::new("*_TIMEOUT").matches_ignoring_case("lock_timeout"));
/// ```
#[derive(Debug, Clone, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(transparent)]
pub struct Pattern(String);

impl Pattern {
    /// A pattern of this text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// Whether all of `name` fits.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        fits(self.0.as_bytes(), name.as_bytes(), |a, b| a == b)
    }

    /// Whether all of `name` fits when ASCII case is ignored.
    #[must_use]
    pub fn matches_ignoring_case(&self, name: &str) -> bool {
        fits(self.0.as_bytes(), name.as_bytes(), |a, b| a.eq_ignore_ascii_case(&b))
    }

    /// The name, if it is one and no pattern: what a [`Subscription`](crate::Subscription) can filter by.
    #[must_use]
    pub fn as_name(&self) -> Option<&str> {
        (!self.0.contains('*')).then_some(&self.0)
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Several [`Pattern`]s, in configuration a list of strings.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Deserialize, serde::Serialize)]
#[serde(transparent)]
pub struct Patterns(Vec<Pattern>);

impl Patterns {
    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether one of them fits.
    #[must_use]
    pub fn match_any(&self, name: &str) -> bool {
        self.0.iter().any(|pattern| pattern.matches(name))
    }

    /// Whether one of them fits when ASCII case is ignored.
    #[must_use]
    pub fn match_any_ignoring_case(&self, name: &str) -> bool {
        self.0.iter().any(|pattern| pattern.matches_ignoring_case(name))
    }

    /// Whether one of them fits, or there are none: how an optional condition reads.
    #[must_use]
    pub fn allow(&self, name: &str) -> bool {
        self.is_empty() || self.match_any(name)
    }

    /// All of them as names, for a [`Subscription`](crate::Subscription); none when one is a pattern, so that the
    /// subscription wants everything and the plugin has to look.
    #[must_use]
    pub fn as_names(&self) -> Vec<String> {
        let names: Option<Vec<String>> =
            self.0.iter().map(|pattern| pattern.as_name().map(str::to_owned)).collect();
        names.unwrap_or_default()
    }
}

impl<P: Into<String>> FromIterator<P> for Patterns {
    fn from_iter<I: IntoIterator<Item = P>>(texts: I) -> Self {
        Self(texts.into_iter().map(Pattern::new).collect())
    }
}

/// Goes back to the last `*` only: what stands before it has fitted, and any later start of it is covered by that `*`.
/// So the time is that of both lengths multiplied, at worst.
fn fits(pattern: &[u8], name: &[u8], same: impl Fn(u8, u8) -> bool) -> bool {
    let (mut p, mut n) = (0, 0);
    let mut star = None;
    while n < name.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, n));
                p += 1;
            }
            Some(&byte) if same(byte, name[n]) => {
                p += 1;
                n += 1;
            }
            _ => {
                let Some((at, from)) = star else { return false };
                star = Some((at, from + 1));
                (p, n) = (at + 1, from + 1);
            }
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_stand_for_any_run() {
        for (pattern, name, expected) in [
            ("", "", true),
            ("", "a", false),
            ("*", "", true),
            ("*", "abc", true),
            ("abc", "abc", true),
            ("abc", "abcd", false),
            ("a*c", "abbc", true),
            ("a*c", "ac", true),
            ("a*c", "acb", false),
            ("*b*", "abc", true),
            ("*ab*ab", "abab", true),
            ("*aab", "aaaab", true),
            ("a**b", "ab", true),
            ("größe*", "größer", true),
        ] {
            assert_eq!(Pattern::new(pattern).matches(name), expected, "{pattern:?} on {name:?}");
        }
    }

    #[test]
    fn only_names_are_passed_to_a_subscription() {
        let patterns: Patterns = ["app", "web"].into_iter().collect();
        assert_eq!(patterns.as_names(), ["app", "web"]);
        let patterns: Patterns = ["app", "web*"].into_iter().collect();
        assert!(patterns.as_names().is_empty());
        assert!(Patterns::default().allow("anybody") && !patterns.allow("other"));
    }
}
