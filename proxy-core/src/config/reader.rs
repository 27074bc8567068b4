//! Reads a TOML tree by the table in `schema`, noting every refusal with its place in the file.

use std::{cell::RefCell, net::SocketAddr, ops::Range, path::Path, sync::LazyLock, time::Duration};

use toml::de::{DeTable, DeValue};

use super::{
    ConfigErrors, Env,
    schema::{KEYS, Key, Kind, WhenAbsent, Word, key},
};

/// One file being read.
pub(super) struct Document<'a> {
    pub(super) text: &'a str,
    pub(super) file: &'a Path,
    pub(super) base_dir: &'a Path,
    pub(super) env: Env<'a>,
    refusals: RefCell<Vec<Refusal>>,
    listening: RefCell<Vec<(SocketAddr, usize)>>,
}

struct Refusal {
    offset: usize,
    message: String,
}

/// One table of the file, or an absent one whose defaults are read.
pub(super) struct Section<'a> {
    pub(super) document: &'a Document<'a>,
    /// As in [`Key::section`].
    section: &'static str,
    /// Dotted path for messages, names included.
    path: String,
    span: Range<usize>,
    table: &'a DeTable<'a>,
}

impl<'a> Document<'a> {
    pub(super) fn new(text: &'a str, file: &'a Path, base_dir: &'a Path, env: Env<'a>) -> Self {
        Self { text, file, base_dir, env, refusals: RefCell::default(), listening: RefCell::default() }
    }

    fn refuse(&self, offset: usize, path: &str, what: &str, allowed: &str) {
        let message = format!("{path}: {what}; allowed: {allowed}");
        self.refusals.borrow_mut().push(Refusal { offset, message });
    }

    /// Line of an offset, from 1.
    fn line(&self, offset: usize) -> usize {
        position(self.text, offset).0
    }

    /// All refusals in the order of the file; empty when the file may be used.
    pub(super) fn errors(&self) -> ConfigErrors {
        let mut refusals = self.refusals.take();
        refusals.sort_by_key(|refusal| refusal.offset);
        let message = |refusal: &Refusal| {
            let (line, column) = position(self.text, refusal.offset);
            format!("{}:{line}:{column}: {}", self.file.display(), refusal.message)
        };
        ConfigErrors { messages: refusals.iter().map(message).collect() }
    }

    /// The message for text that is not TOML: the parser cannot go on, so there is only this one.
    pub(super) fn syntax_error(&self, error: &toml::de::Error) -> ConfigErrors {
        let (line, column) = position(self.text, error.span().map_or(0, |span| span.start));
        let what = error.message().replace('\n', ", ");
        let message =
            format!("{}:{line}:{column}: is not TOML: {what}; allowed: TOML 1.1", self.file.display());
        ConfigErrors { messages: vec![message] }
    }
}

/// Line and column, both from 1, the column in characters.
pub(super) fn position(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |at| at + 1);
    (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
}

/// A name as one step of a dotted path: quoted when it would not read as one.
pub(super) fn step(name: &str) -> String {
    let plain = !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || "_-@".contains(c));
    if plain { name.to_owned() } else { format!("{name:?}") }
}

/// `path.name`, or `name` at the top.
pub(super) fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

/// The key by which people tell the tables of a list apart.
fn label_of(section: &str) -> Option<&'static str> {
    match section {
        "proxy" | "proxy.endpoint" | "proxy.plugin" => Some("name"),
        "proxy.auth" => Some("username"),
        _ => None,
    }
}

static EMPTY: LazyLock<DeTable<'static>> = LazyLock::new(DeTable::new);

impl<'a> Section<'a> {
    /// The whole file.
    pub(super) fn root(document: &'a Document<'a>, table: &'a DeTable<'a>) -> Self {
        Self::open(document, "", String::new(), 0..0, table)
    }

    /// Takes a table on and refuses the keys that do not belong there.
    fn open(
        document: &'a Document<'a>,
        section: &'static str,
        path: String,
        span: Range<usize>,
        table: &'a DeTable<'a>,
    ) -> Self {
        let opened = Self { document, section, path, span, table };
        for name in table.keys() {
            let (offset, name) = (name.span().start, name.get_ref().as_ref());
            match KEYS.iter().find(|key| key.section == section && key.name == name) {
                None => {
                    let allowed: Vec<_> = keys_of(section).map(|key| key.name).collect();
                    let path = join(&opened.path, &step(name));
                    document.refuse(offset, &path, &unknown(section, name), &allowed.join(", "));
                }
                Some(key) => {
                    if let Kind::Later(feature) = key.kind {
                        let what = format!("{feature} is not in this build");
                        document.refuse(offset, &join(&opened.path, name), &what, &key.allowed());
                    }
                }
            }
        }
        opened
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.table.contains_key(name)
    }

    /// The string at `name`, if there is one, unchecked.
    pub(super) fn raw(&self, name: &str) -> Option<&'a str> {
        self.table.get(name)?.get_ref().as_str()
    }

    /// Where the value of `name` stands, or the table's header when it is absent.
    fn offset(&self, name: &str) -> usize {
        self.table.get(name).map_or(self.span.start, |value| value.span().start)
    }

    /// Notes what is wrong with the value of `name`; `allowed` is what would be right there.
    pub(super) fn refuse(&self, name: &str, what: &str, allowed: &str) {
        self.document.refuse(self.offset(name), &join(&self.path, name), what, allowed);
    }

    /// The same, with the table's own words for what is allowed.
    pub(super) fn refuse_value(&self, name: &str, what: &str) {
        self.refuse(name, what, &key(self.section, name).allowed());
    }

    /// The value of `name` or its default; `None` after a refusal.
    pub(super) fn get<T>(
        &self,
        name: &str,
        read: impl Fn(&Key, &DeValue<'_>) -> Result<T, String>,
    ) -> Option<T> {
        self.optional(name, read).flatten()
    }

    /// The value of a key that has no default in the file's own terms: `Some(None)` when it is absent,
    /// `None` after a refusal.
    pub(super) fn optional<T>(
        &self,
        name: &str,
        read: impl Fn(&Key, &DeValue<'_>) -> Result<T, String>,
    ) -> Option<Option<T>> {
        let key = key(self.section, name);
        match (self.table.get(name), key.default) {
            (Some(value), _) => match read(key, value.get_ref()) {
                Ok(value) => Some(Some(value)),
                Err(what) => {
                    self.refuse_value(name, &what);
                    None
                }
            },
            (None, WhenAbsent::Required) => {
                self.refuse_value(name, "is missing");
                None
            }
            (None, WhenAbsent::Value(text)) => {
                let value = DeValue::parse(text).expect("defaults are TOML, a test reads them all");
                Some(Some(read(key, value.get_ref()).expect("defaults are allowed, a test reads them all")))
            }
            (None, WhenAbsent::Said(_)) => Some(None),
        }
    }

    /// The strings of a list, each through `read`, refused where it stands in the list.
    pub(super) fn list<T>(&self, name: &str, read: impl Fn(&str) -> Result<T, String>) -> Option<Vec<T>> {
        let key = key(self.section, name);
        let Some(value) = self.table.get(name) else { return Some(Vec::new()) };
        let Some(items) = value.get_ref().as_array() else {
            self.refuse_value(name, &wrong_type(value.get_ref(), "a list"));
            return None;
        };
        let item = |item: &toml::Spanned<DeValue<'_>>| {
            let text = item.get_ref().as_str().ok_or_else(|| wrong_type(item.get_ref(), "a string"));
            let refused = |what: String| {
                self.document.refuse(item.span().start, &join(&self.path, name), &what, &key.allowed());
            };
            text.and_then(&read).map_err(refused).ok()
        };
        // Collected twice so that every item is looked at.
        items.iter().map(item).collect::<Vec<_>>().into_iter().collect()
    }

    /// The table at `name`, or an empty one so that its defaults are read; `None` after a refusal.
    pub(super) fn table(&self, name: &str) -> Option<Self> {
        let Some(value) = self.table.get(name) else {
            if matches!(key(self.section, name).default, WhenAbsent::Required) {
                self.refuse_value(name, "is missing");
                return None;
            }
            let (section, path) = (self.section_below(name), join(&self.path, name));
            return Some(Self::open(self.document, section, path, self.span.clone(), &EMPTY));
        };
        let Some(table) = value.get_ref().as_table() else {
            self.refuse_value(name, &wrong_type(value.get_ref(), "a table"));
            return None;
        };
        Some(Self::open(self.document, self.section_below(name), join(&self.path, name), value.span(), table))
    }

    /// The tables of a list, at least one; empty after a refusal.
    pub(super) fn tables(&self, name: &str) -> Vec<Self> {
        let value = self.table.get(name);
        let Some(items) =
            value.and_then(|value| value.get_ref().as_array()).filter(|items| !items.is_empty())
        else {
            let what = match value {
                None => "is missing".to_owned(),
                Some(value) if value.get_ref().is_array() => "is empty".to_owned(),
                Some(value) => wrong_type(value.get_ref(), "a list of tables"),
            };
            self.refuse_value(name, &what);
            return Vec::new();
        };
        let section = self.section_below(name);
        let mut opened = Vec::new();
        for (index, item) in items.iter().enumerate() {
            let Some(table) = item.get_ref().as_table() else {
                let what = wrong_type(item.get_ref(), "a table");
                let allowed = key(self.section, name).allowed();
                self.document.refuse(item.span().start, &join(&self.path, name), &what, &allowed);
                continue;
            };
            let label = label_of(section)
                .and_then(|label| table.get(label))
                .and_then(|label| label.get_ref().as_str());
            let path = match (label, index) {
                (Some(label), _) => join(&join(&self.path, name), &step(label)),
                (None, 0) => join(&self.path, name),
                (None, _) => format!("{}[{}]", join(&self.path, name), index + 1),
            };
            opened.push(Self::open(self.document, section, path, item.span(), table));
        }
        opened
    }

    /// Refuses the table itself, at its header.
    pub(super) fn refuse_table(&self, what: &str, allowed: &str) {
        self.document.refuse(self.span.start, &self.path, what, allowed);
    }

    /// Notes a listening address and refuses it where an earlier one would be in its way.
    pub(super) fn claim(&self, name: &str, address: SocketAddr) {
        let offset = self.offset(name);
        let mut listening = self.document.listening.borrow_mut();
        if let Some((other, at)) = listening.iter().find(|(other, _)| clash(*other, address)) {
            let what = format!("{address} clashes with {other} on line {}", self.document.line(*at));
            self.refuse(name, &what, "an address and port that nothing else listens on");
        }
        listening.push((address, offset));
    }

    fn section_below(&self, name: &str) -> &'static str {
        let below = join(self.section, name);
        keys_of(&below).next().expect("a table has keys").section
    }
}

/// Refuses every table whose `name` an earlier one already has.
pub(super) fn refuse_repeats(sections: &[Section<'_>], name: &str) {
    for (index, section) in sections.iter().enumerate() {
        let Some(value) = section.raw(name) else { continue };
        if let Some(first) = sections[..index].iter().find(|earlier| earlier.raw(name) == Some(value)) {
            let line = section.document.line(first.offset(name));
            let what = format!("{value:?} already stands on line {line}");
            section.refuse(name, &what, "one that is not used yet");
        }
    }
}

/// Whether two sockets cannot be bound at the same time. Port 0 is a fresh port each time. An address of
/// one family against the wildcard of the other depends on the system, so binding is left to tell.
fn clash(a: SocketAddr, b: SocketAddr) -> bool {
    let wildcard = a.ip().is_unspecified() || b.ip().is_unspecified();
    a.port() != 0 && a.port() == b.port() && (a.ip() == b.ip() || (wildcard && a.is_ipv4() == b.is_ipv4()))
}

/// The keys of a section that this build knows.
pub(super) fn keys_of(section: &str) -> impl Iterator<Item = &'static Key> {
    KEYS.iter().filter(move |key| key.section == section && !matches!(key.kind, Kind::Later(_)))
}

/// What to say of a key that is not in the table: the nearest key, or the section it belongs to.
fn unknown(section: &str, name: &str) -> String {
    let near = keys_of(section).map(|key| (distance(name, key.name), key.name)).min();
    if let Some((distance, near)) = near
        && distance <= (near.len() / 3).max(1)
    {
        return format!("is not a key; did you mean {near}?");
    }
    let mut elsewhere = KEYS.iter().filter(|key| key.name == name);
    match (elsewhere.next(), elsewhere.next()) {
        (Some(key), None) => match key.section {
            "" => "is not a key here; it belongs at the top of the file".to_owned(),
            section => format!("is not a key here; it belongs in {section}"),
        },
        _ => "is not a key".to_owned(),
    }
}

/// Levenshtein's distance in bytes.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.bytes().enumerate() {
            let changed = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

fn wrong_type(value: &DeValue<'_>, wanted: &str) -> String {
    let found = match value.type_str() {
        "array" => "a list".to_owned(),
        kind @ "integer" => format!("an {kind}"),
        kind => format!("a {kind}"),
    };
    format!("is {found}, not {wanted}")
}

/// A table as JSON: what plugins take their configuration as. Dates become text.
pub(super) fn json(_: &Key, value: &DeValue<'_>) -> Result<String, String> {
    if value.as_table().is_none() {
        return Err(wrong_type(value, "a table"));
    }
    Ok(json_value(value)?.to_string())
}

fn json_value(value: &DeValue<'_>) -> Result<serde_json::Value, String> {
    Ok(match value {
        DeValue::String(text) => serde_json::Value::from(text.as_ref()),
        DeValue::Boolean(boolean) => (*boolean).into(),
        DeValue::Integer(integer) => i64::from_str_radix(integer.as_str(), integer.radix())
            .map_err(|_| format!("{integer} is out of range"))?
            .into(),
        DeValue::Float(float) => float
            .as_str()
            .parse()
            .ok()
            .and_then(serde_json::Number::from_f64)
            .ok_or_else(|| format!("{float} is no number that JSON has"))?
            .into(),
        DeValue::Datetime(datetime) => datetime.to_string().into(),
        DeValue::Array(items) => {
            items.iter().map(|item| json_value(item.get_ref())).collect::<Result<Vec<_>, _>>()?.into()
        }
        DeValue::Table(table) => {
            let pairs = table
                .iter()
                .map(|(name, value)| Ok((name.get_ref().to_string(), json_value(value.get_ref())?)));
            serde_json::Value::Object(pairs.collect::<Result<_, String>>()?)
        }
    })
}

pub(super) fn boolean(_: &Key, value: &DeValue<'_>) -> Result<bool, String> {
    value.as_bool().ok_or_else(|| wrong_type(value, "a boolean"))
}

pub(super) fn text(_: &Key, value: &DeValue<'_>) -> Result<String, String> {
    value.as_str().map(str::to_owned).ok_or_else(|| wrong_type(value, "a string"))
}

pub(super) fn word<W: Word>(key: &Key, value: &DeValue<'_>) -> Result<W, String> {
    let given = text(key, value)?;
    match W::WORDS.iter().find(|(word, _)| *word == given) {
        Some((_, meaning)) => Ok(*meaning),
        None => Err(format!("{given:?} is not known")),
    }
}

/// An integer in `least..=most`, whatever range the caller knows.
pub(super) fn integer_in(value: &DeValue<'_>, least: u64, most: u64) -> Result<u64, String> {
    let given = value.as_integer().ok_or_else(|| wrong_type(value, "an integer"))?;
    u64::from_str_radix(given.as_str(), given.radix())
        .ok()
        .filter(|number| (least..=most).contains(number))
        .ok_or_else(|| format!("{given} is out of range"))
}

pub(super) fn integer<T: TryFrom<u64>>(key: &Key, value: &DeValue<'_>) -> Result<T, String> {
    let Kind::Integer(least, most) = key.kind else {
        unreachable!("{} is an integer in the table", key.name)
    };
    let number = integer_in(value, least, most)?;
    Ok(T::try_from(number).ok().expect("the range in the table fits the field's type"))
}

/// More than any sensible duration needs, and too little for one that overflows the parser's arithmetic.
const DURATION_BYTES: usize = 20;

pub(super) fn duration(key: &Key, value: &DeValue<'_>) -> Result<Duration, String> {
    let Kind::Duration(least, most) = key.kind else {
        unreachable!("{} is a duration in the table", key.name)
    };
    if let Some(number) = value.as_integer() {
        return Err(format!("{number} has no unit"));
    }
    let given = text(key, value)?;
    if given.bytes().all(|byte| byte.is_ascii_digit()) && !given.is_empty() {
        return Err(format!("{given:?} has no unit"));
    }
    let known = |text: &str| humantime::parse_duration(text).expect("durations in the table are valid");
    let parsed = if given.len() > DURATION_BYTES { None } else { humantime::parse_duration(&given).ok() };
    let length = parsed.ok_or_else(|| format!("{given:?} is not a duration"))?;
    if !(known(least)..=known(most)).contains(&length) {
        return Err(format!("{given:?} is out of range"));
    }
    Ok(length)
}
